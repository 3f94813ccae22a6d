// A matrix is read in pieces that have each row once, whatever its tensors are stored as.
#include "format/pieces.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "support/random.h"
#include "support/test.h"

using namespace millrace;

namespace {

FileTensor tensor_of(Type type, int columns, int rows) {
  FileTensor tensor;
  tensor.type = type;
  tensor.shape = {columns, rows, 1, 1};
  return tensor;
}

std::vector<uint8_t> random_bytes(test::Random& random, size_t count) {
  std::vector<uint8_t> bytes(count);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.next());
  return bytes;
}

const uint8_t* kept(ModelFile& file, const std::vector<uint8_t>& bytes) {
  uint8_t* memory = file.allocate(bytes.size());
  std::memcpy(memory, bytes.data(), bytes.size());
  return memory;
}

// The whole matrix, piece by piece, in memory that was not zero.
std::vector<uint8_t> read_all(const ModelFile& file, const FileTensor& tensor, int columns, int64_t bytes_max) {
  const size_t row_bytes = static_cast<size_t>(columns) * 2;
  std::vector<uint8_t> to(static_cast<size_t>(tensor.rows()) * row_bytes, 0xa5);
  for (const Piece& piece : cut_rows({&tensor}, static_cast<int64_t>(row_bytes), bytes_max)) {
    const Status status = read_bfloats(file, piece, columns, to.data() + static_cast<size_t>(piece.row) * row_bytes);
    CHECK(status.ok(), status.message());
  }
  return to;
}

}  // namespace

TEST("each row of ragged tensors is in one piece, in order, and no piece is too long") {
  test::Random random;
  for (int round = 0; round < 300; round++) {
    std::vector<FileTensor> tensors;
    for (int i = random.between(1, 6); i > 0; i--) tensors.push_back(tensor_of(Type::bf16, 64, random.between(1, 3000)));
    std::vector<const FileTensor*> parts;
    for (const FileTensor& tensor : tensors) parts.push_back(&tensor);
    const int64_t row_bytes = random.between(1, 5000), bytes_max = row_bytes + random.between(0, 100'000);
    size_t part = 0;
    int64_t next = 0, row = 0, least = 0;  // `next` of the part, `row` of the matrix
    for (const Piece& piece : cut_rows(parts, row_bytes, bytes_max)) {
      if (next == parts[part]->rows()) part++, next = 0;
      REQUIRE(part < parts.size());
      CHECK(piece.tensor == parts[part]);
      CHECK_EQUAL(piece.first, next);
      CHECK_EQUAL(piece.row, row);
      CHECK(piece.count > 0 && piece.count * row_bytes <= bytes_max, piece.count, " rows of ", row_bytes, " bytes");
      // Nor is one much shorter than the others of its tensor.
      least = next == 0 ? piece.count : std::min(least, piece.count);
      CHECK(piece.count <= least + 1);
      next += piece.count;
      row += piece.count;
    }
    CHECK(part + 1 == parts.size() && next == parts[part]->rows());
  }
}

TEST("bfloats are read as they are, one behind another or from their places, and what pads them is zero") {
  test::Random random;
  for (const auto& [own, columns] : {std::pair{64, 64}, {60, 64}, {1, 64}}) {
    constexpr int rows = 37;
    ModelFile file("none");
    const std::vector<uint8_t> bytes = random_bytes(random, size_t{rows} * static_cast<size_t>(own) * 2);
    FileTensor tensor = tensor_of(Type::bf16, own, rows);
    tensor.bytes = kept(file, bytes);
    FileTensor scattered = tensor;
    for (int row = rows - 1; row >= 0; row--) scattered.places.push_back(tensor.row(row));
    const std::vector<uint8_t> read = read_all(file, tensor, columns, 1000), turned = read_all(file, scattered, columns, 1000);
    for (size_t row = 0; row < rows; row++)
      for (size_t i = 0; i < static_cast<size_t>(columns) * 2; i++) {
        const size_t width = static_cast<size_t>(own) * 2, row_bytes = static_cast<size_t>(columns) * 2;
        CHECK_EQUAL(int{read[row * row_bytes + i]}, i < width ? int{bytes[row * width + i]} : 0);
        CHECK_EQUAL(int{turned[row * row_bytes + i]}, i < width ? int{bytes[(rows - 1 - row) * width + i]} : 0);
      }
  }
}

TEST("what is of another type is rounded to bfloat") {
  test::Random random;
  constexpr int rows = 5, own = 50, columns = 64;
  ModelFile file("none");
  const std::vector<float> values = random.normals(rows * own);
  std::vector<uint8_t> bytes(values.size() * sizeof(float));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  FileTensor tensor = tensor_of(Type::f32, own, rows);
  tensor.bytes = kept(file, bytes);
  const std::vector<uint8_t> read = read_all(file, tensor, columns, 300);
  for (int row = 0; row < rows; row++)
    for (int c = 0; c < columns; c++) {
      uint16_t bits;
      std::memcpy(&bits, read.data() + (row * columns + c) * 2, 2);
      CHECK_EQUAL(bits, c < own ? float_to_bfloat(values[static_cast<size_t>(row * own + c)]) : 0);
    }
}

// Rows that lie one behind another are read together: those that do only in parts, or nowhere, must come out the same.
TEST("rows of E4M3 keep their bits and scales, wherever they lie") {
  test::Random random;
  for (const int own : {64, 60})
    for (const char* order : {"as they are", "in runs", "turned"}) {
      constexpr int rows = 40, columns = 64;
      ModelFile file("none");
      const std::vector<uint8_t> bytes = random_bytes(random, rows * static_cast<size_t>(own));
      const uint8_t* from = kept(file, bytes);
      const auto place = [&](int64_t row) { return order[0] == 'a' ? row : order[0] == 'i' ? (row + 13) % rows : rows - 1 - row; };
      FileTensor tensor = tensor_of(Type::derived, own, rows);
      tensor.e4m3 = [&](int64_t row) { return E4m3Row{from + place(row) * own, static_cast<float>(row) + 0.5f}; };
      std::vector<uint8_t> to(rows * columns, 0xa5);
      std::vector<float> scales(rows);
      for (const Piece& piece : cut_rows({&tensor}, columns, 17 * columns))
        REQUIRE(read_e4m3(file, piece, columns, to.data() + piece.row * columns, scales.data() + piece.row).ok());
      for (int row = 0; row < rows; row++) {
        CHECK_EQUAL(scales[static_cast<size_t>(row)], static_cast<float>(row) + 0.5f);
        for (int c = 0; c < columns; c++)
          CHECK(to[static_cast<size_t>(row * columns + c)] == (c < own ? bytes[static_cast<size_t>(place(row) * own + c)] : 0), "row ", row, ", column ", c, ", ", order);
      }
    }
}

TEST("a file that was cut short is an error of the pieces behind its end") {
  std::string path = "pieces.XXXXXX";
  const int descriptor = mkstemp(path.data());
  REQUIRE(descriptor >= 0 && ftruncate(descriptor, 128'000) == 0);
  ModelFile file("none");
  const MappedFile& mapped = file.hold(MappedFile::open(path).take());
  FileTensor tensor = tensor_of(Type::bf16, 64, 1000);
  tensor.bytes = mapped.bytes().data();
  REQUIRE(ftruncate(descriptor, 64'000) == 0);
  std::vector<uint8_t> to(128'000);
  int failed = 0;
  for (const Piece& piece : cut_rows({&tensor}, 128, 12'800)) {
    const Status status = read_bfloats(file, piece, 64, to.data() + piece.row * 128);
    CHECK_EQUAL(status.ok(), piece.row < 500);
    CHECK(status.ok() || status.message().find("cut short") != std::string::npos, status.message());
    failed += status.ok() ? 0 : 1;
  }
  CHECK_EQUAL(failed, 5);
  close(descriptor);
  unlink(path.c_str());
}
