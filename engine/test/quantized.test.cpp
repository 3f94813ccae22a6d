// Quantized checkpoints beside a plain implementation of what their formats mean: the same bits. scripts/golden-quantized.py makes the fixture.
#include "format/hf/quantized.h"

#include <bit>
#include <cstring>
#include <set>

#include "format/hf/fp8.h"
#include "format/hf/json_file.h"
#include "support/bytes.h"
#include "support/test.h"

using namespace millrace;

namespace {

struct Fixture {
  MappedFile file;
  StoredTensors tensors;
  Json configs;

  static Fixture read() {
    auto file = MappedFile::open(test::fixture_path("quantized.safetensors"));
    REQUIRE(file.ok(), file.message());
    auto configs = read_json_file(test::fixture_path("quantized.txt"));
    REQUIRE(configs.ok(), configs.message());
    Fixture fixture{file.take(), {}, configs.take()};
    const Status status = read_safetensors(fixture.file, fixture.tensors);
    REQUIRE(status.ok(), status.message());
    return fixture;
  }

  Parameters parameters(const std::string& name) const {
    Parameters own;
    for (const auto& [key, tensor] : tensors)
      if (key.rfind(name + ".", 0) == 0 && !key.ends_with(".expected")) own[key.substr(name.size() + 1)] = &tensor;
    return own;
  }
};

std::string refusal(const std::string& config) {
  auto json = parse_json(config);
  REQUIRE(json.ok(), json.message());
  const auto quantization = read_quantization(json.value());
  return quantization.ok() ? "" : quantization.message();
}

}  // namespace

TEST("every quantization is read to the bits of its definition") {
  const Fixture fixture = Fixture::read();
  std::set<std::string> seen, rows_of_e4m3;
  for (const auto& [name, config] : *fixture.configs.object()) {
    ModelFile model(name);
    auto quantization = read_quantization(config);
    REQUIRE(quantization.ok(), name, " ", quantization.message());
    const Parameters parameters = fixture.parameters(name);
    CHECK(is_quantized(parameters), name);
    auto read = dequantized(quantization.value(), parameters, model);
    REQUIRE(read.ok(), name, " ", read.message());
    const FileTensor tensor = read.take();
    const StoredTensor& expected = fixture.tensors.at(name + ".expected");
    REQUIRE(tensor.rows() * tensor.columns() == expected.values() && tensor.columns() == expected.shape.back(), name, " is ", tensor.rows(), " x ", tensor.columns());
    if (tensor.e4m3) rows_of_e4m3.insert(name);
    std::vector<float> values(static_cast<size_t>(tensor.columns())), wanted(values.size());
    for (int64_t row = 0; row < tensor.rows(); row++) {
      read_row(tensor, row, values.data());
      std::memcpy(wanted.data(), expected.bytes.data() + static_cast<size_t>(row) * values.size() * sizeof(float), values.size() * sizeof(float));
      for (size_t c = 0; c < values.size(); c++)
        // Zeros of either sign are one value.
        CHECK(values[c] == wanted[c], name, " row ", row, " column ", c, " is ", values[c], ", not ", wanted[c]);
      for (size_t c = 0; tensor.e4m3 && c < values.size(); c++) {
        const E4m3Row own = tensor.e4m3(row);
        CHECK_EQUAL(e4m3_to_float(own.bits[c]) * own.scale, values[c]);
      }
    }
    seen.insert(quantization.value().method);
  }
  CHECK_EQUAL(rows_of_e4m3, (std::set<std::string>{"fp8_channel", "fp8_tensor"}));
  CHECK_EQUAL(seen, (std::set<std::string>{"awq", "compressed-tensors", "fp8", "gptq", "mxfp4"}));
}

TEST("a parameter that is missing or of another shape is refused, never read past its end") {
  const Fixture fixture = Fixture::read();
  for (const auto& [name, config] : *fixture.configs.object()) {
    ModelFile model(name);
    const HfQuantization quantization = read_quantization(config).take();
    for (const auto& [missing, tensor] : fixture.parameters(name)) {
      Parameters parameters = fixture.parameters(name);
      parameters.erase(missing);
      const bool optional = missing == "g_idx" || missing == "weight_zero_point";
      CHECK(optional || !dequantized(quantization, parameters, model).ok(), name, " without ", missing);
      StoredTensor shorter = *tensor;
      if (shorter.shape.back() < 2 || shorter.values() < 2) continue;
      shorter.shape.back()--;
      shorter.bytes = shorter.bytes.subspan(0, shorter.bytes.size() / static_cast<size_t>(tensor->shape.back()) * static_cast<size_t>(shorter.shape.back()));
      parameters[missing] = &shorter;
      const auto read = dequantized(quantization, parameters, model);
      if (!read.ok()) continue;
      // What is still read has to stay within its bytes, which a sanitizer sees.
      std::vector<float> values(static_cast<size_t>(read.value().columns()));
      for (int64_t row = 0; row < read.value().rows(); row++) read_row(read.value(), row, values.data());
    }
  }
}

TEST("quantizations that are not read are refused by name") {
  const auto refused = [](const std::string& config, const std::string& part) {
    CHECK(refusal(config).find(part) != std::string::npos, "wanted \"", part, "\", got \"", refusal(config), "\"");
  };
  refused(R"({"quant_method": "bitsandbytes"})", "quantized by \"bitsandbytes\", which is not read");
  refused(R"({"quant_method": "gptq", "bits": 3})", "gptq to 3 bits; 4 and 8 are read");
  refused(R"({"quant_method": "awq", "bits": 8})", "awq to 8 bits; 4 are read");
  refused(R"({"quant_method": "awq", "bits": 4, "version": "gemv"})", "awq's version \"gemv\"");
  refused(R"({"quant_method": "compressed-tensors"})", "without config_groups");
  refused(R"({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 4, "type": "float"}}}})", "4 bits of float");
  CHECK_EQUAL(refusal("null"), std::string());
}

TEST("every E4M3 has its value") {
  CHECK_EQUAL(e4m3_to_float(0x7e), 448.0f);
  CHECK_EQUAL(e4m3_to_float(0x01), 0x1p-9f);
  CHECK_EQUAL(e4m3_to_float(0x38), 1.0f);
  CHECK_EQUAL(e4m3_to_float(0xb8), -1.0f);
  CHECK(e4m3_to_float(0x7f) != e4m3_to_float(0x7f) && e4m3_to_float(0xff) != e4m3_to_float(0xff));
}
