#include "blaslt.h"

#include <dlfcn.h>
#include <library_types.h>

#include <limits>
#include <utility>
#include <vector>

#include "../base/text.h"

namespace millrace {
namespace {

// As cublasLt.h of CUDA 13 declares them: its header is not needed to build.
constexpr int op_transposed = 1, compute_f32 = 68;
constexpr int attribute_transposes_a = 3, attribute_w_scales = 17, attribute_x_scales = 18, attribute_w_scaling = 31, attribute_x_scaling = 32;
constexpr int scale_for_each_row = 3;  // of w, and for each token of x
constexpr int preference_workspace_bytes = 1;
constexpr size_t workspace_bytes = 32 << 20;
constexpr int ways_max = 8, rounds_a_way = 2;

using Handle = void*;
using Description = void*;
using Layout = void*;
using Preference = void*;
struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace_bytes;
  int status;
  float waves;
  int reserved[4];
};

void check_blas(int status, const char* what) {
  if (status != 0) throw CudaError(text("cuBLASLt: ", what, " failed with status ", status));
}

}  // namespace

struct BlasLt::Library {
  void* file = nullptr;
  int (*create)(Handle*) = nullptr;
  int (*destroy)(Handle) = nullptr;
  int (*create_description)(Description*, int compute, int scale_type) = nullptr;
  int (*destroy_description)(Description) = nullptr;
  int (*set_attribute)(Description, int attribute, const void* value, size_t bytes) = nullptr;
  int (*create_layout)(Layout*, int type, uint64_t rows, uint64_t columns, int64_t stride) = nullptr;
  int (*destroy_layout)(Layout) = nullptr;
  int (*create_preference)(Preference*) = nullptr;
  int (*destroy_preference)(Preference) = nullptr;
  int (*set_preference)(Preference, int attribute, const void* value, size_t bytes) = nullptr;
  int (*find)(Handle, Description, Layout a, Layout b, Layout c, Layout d, Preference, int wanted, Heuristic* found, int* count) = nullptr;
  int (*multiply)(Handle, Description, const void* alpha, const void* a, Layout, const void* b, Layout, const void* beta, const void* c, Layout, void* d, Layout,
                  const Algorithm*, void* workspace, size_t bytes, cudaStream_t) = nullptr;

  ~Library() {
    if (file != nullptr) dlclose(file);
  }

  template <typename Function>
  bool look_up(const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(file, name));
    return function != nullptr;
  }

  bool open() {
    file = dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL);
    return file != nullptr && look_up("cublasLtCreate", create) && look_up("cublasLtDestroy", destroy) && look_up("cublasLtMatmulDescCreate", create_description) &&
           look_up("cublasLtMatmulDescDestroy", destroy_description) && look_up("cublasLtMatmulDescSetAttribute", set_attribute) &&
           look_up("cublasLtMatrixLayoutCreate", create_layout) && look_up("cublasLtMatrixLayoutDestroy", destroy_layout) &&
           look_up("cublasLtMatmulPreferenceCreate", create_preference) && look_up("cublasLtMatmulPreferenceDestroy", destroy_preference) &&
           look_up("cublasLtMatmulPreferenceSetAttribute", set_preference) && look_up("cublasLtMatmulAlgoGetHeuristic", find) && look_up("cublasLtMatmul", multiply);
  }
};

// What is found once for a shape. Column-major, as the library sees it: y^T [rows][tokens] = w^T transposed [rows][columns] . x^T [columns][tokens].
struct BlasLt::Plan {
  const Library& library;
  Description description = nullptr;
  Layout w = nullptr, x = nullptr, y = nullptr;
  std::vector<Algorithm> ways;  // the likeliest to be fast first
  size_t chosen = 0;
  bool is_tuned = false;

  explicit Plan(const Library& from) : library(from) {}
  ~Plan() {
    for (const Layout layout : {w, x, y})
      if (layout != nullptr) library.destroy_layout(layout);
    if (description != nullptr) library.destroy_description(description);
  }

  void find(Handle handle, const Shape& shape, const void* scales) {
    const auto [stored, rows, columns, tokens, result, stride, adds] = shape;
    const int type = stored == DeviceMatrix::Type::fp8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    check_blas(library.create_description(&description, compute_f32, CUDA_R_32F), "describing a product");
    check_blas(library.set_attribute(description, attribute_transposes_a, &op_transposed, sizeof(op_transposed)), "describing a product");
    if (stored == DeviceMatrix::Type::fp8)
      for (const int attribute : {attribute_w_scaling, attribute_x_scaling})
        check_blas(library.set_attribute(description, attribute, &scale_for_each_row, sizeof(scale_for_each_row)), "describing scales");
    // Which algorithms there are depends on there being scales; whose, is said with each product.
    if (stored == DeviceMatrix::Type::fp8)
      for (const int attribute : {attribute_w_scales, attribute_x_scales})
        check_blas(library.set_attribute(description, attribute, &scales, sizeof(scales)), "describing scales");
    check_blas(library.create_layout(&w, type, static_cast<uint64_t>(columns), static_cast<uint64_t>(rows), columns), "describing weights");
    check_blas(library.create_layout(&x, type, static_cast<uint64_t>(columns), static_cast<uint64_t>(tokens), columns), "describing tokens");
    check_blas(library.create_layout(&y, result == Result::f32 ? CUDA_R_32F : CUDA_R_16BF, static_cast<uint64_t>(rows), static_cast<uint64_t>(tokens), stride), "describing results");
    Preference preference = nullptr;
    check_blas(library.create_preference(&preference), "choosing");
    const size_t bytes = workspace_bytes;
    Heuristic found[ways_max] = {};
    int count = 0;
    int status = library.set_preference(preference, preference_workspace_bytes, &bytes, sizeof(bytes));
    if (status == 0) status = library.find(handle, description, w, x, y, y, preference, ways_max, found, &count);
    library.destroy_preference(preference);
    check_blas(status, "choosing");
    for (int i = 0; i < count; i++)
      if (found[i].status == 0) ways.push_back(found[i].algorithm);
    if (ways.empty()) throw CudaError(text("cuBLASLt has nothing for a matrix of ", rows, " x ", columns, " and ", tokens, " tokens"));
  }
};

std::unique_ptr<BlasLt> BlasLt::open() {
  auto library = std::make_unique<Library>();
  if (!library->open()) return nullptr;
  return std::unique_ptr<BlasLt>(new BlasLt(std::move(library)));
}

BlasLt::BlasLt(std::unique_ptr<Library> library) : library_(std::move(library)), workspace_(workspace_bytes) {
  check_blas(library_->create(&handle_), "starting");
}

BlasLt::~BlasLt() {
  plans_.clear();
  library_->destroy(handle_);
}

BlasLt::Plan& BlasLt::plan_of(const Shape& shape) {
  std::unique_ptr<Plan>& plan = plans_[shape];
  if (plan == nullptr) {
    plan = std::make_unique<Plan>(*library_);
    plan->find(handle_, shape, workspace_.get());
  }
  return *plan;
}

void BlasLt::multiply(cudaStream_t stream, const DeviceMatrix& w, const Input& x, int tokens, Result result, void* y, int64_t stride, bool adds) {
  const Plan& plan = plan_of({w.type, w.rows, w.columns, tokens, result, stride, adds});
  check_blas(run(stream, plan, plan.chosen, w, x, y, adds), "multiplying");
}

// Yields the library's status.
int BlasLt::run(cudaStream_t stream, const Plan& plan, size_t way, const DeviceMatrix& w, const Input& x, void* y, bool adds) {
  if (w.type == DeviceMatrix::Type::fp8) {
    check_blas(library_->set_attribute(plan.description, attribute_w_scales, &w.scales, sizeof(w.scales)), "setting scales");
    check_blas(library_->set_attribute(plan.description, attribute_x_scales, &x.scales, sizeof(x.scales)), "setting scales");
  }
  const float one = 1, beta = adds ? 1 : 0;
  return library_->multiply(handle_, plan.description, &one, w.values, plan.w, x.values, plan.x, &beta, y, plan.y, y, plan.y, &plan.ways[way], workspace_.get(), workspace_bytes, stream);
}

bool BlasLt::tune(cudaStream_t stream, std::span<const DeviceMatrix> alike, const Input& x, int tokens, Result result, void* y, int64_t stride, bool adds) {
  const DeviceMatrix& first = alike[0];
  Plan& plan = plan_of({first.type, first.rows, first.columns, tokens, result, stride, adds});
  if (std::exchange(plan.is_tuned, true) || plan.ways.size() == 1) return false;
  const CudaEvent begin = make_event(true), end = make_event(true);
  float least_ms = std::numeric_limits<float>::infinity();
  for (size_t way = 0; way < plan.ways.size(); way++) {
    // What is done once for a kernel is done; and a way that this device refuses is left out.
    if (run(stream, plan, way, first, x, y, adds) != 0) continue;
    check(cudaEventRecord(begin.get(), stream), "timing a product");
    for (int round = 0; round < rounds_a_way; round++)
      for (const DeviceMatrix& w : alike) check_blas(run(stream, plan, way, w, x, y, adds), "timing a product");
    check(cudaEventRecord(end.get(), stream), "timing a product");
    check(cudaEventSynchronize(end.get()), "timing a product");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin.get(), end.get()), "timing a product");
    if (ms < least_ms) least_ms = ms, plan.chosen = way;
  }
  return true;
}

}  // namespace millrace
