// cuBLASLt behind matmul_lt.h. The library is opened at run time and only function pointers are taken from it, so that
// the program starts where it is missing. What the library has to be asked for a shape (layouts, algorithm) is asked
// once and kept: a product then costs one look-up and one launch. Row-major out[m, n] = x[m, k] * w[n, k]^T is
// column-major D(n x m) = A^T * B with A = w (k x n) and B = x (k x m), so no operand is ever moved.
#include "kernels/cuda/matmul_lt.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <map>
#include <vector>

#include "infer/error.h"
#include "kernels/cuda/e4m3.h"

namespace infer::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{64} << 20;

/// The functions in use; types from the toolkit's header, addresses from the library.
struct Api {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtGetStatusName) status_name;
};

/// The name of the first function that the library lacks, or null.
const char* resolve(void* library, Api& api) {
  const char* missing = nullptr;
  const auto take = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
    if (!function && !missing) missing = name;
  };
  take(api.create, "cublasLtCreate");
  take(api.destroy, "cublasLtDestroy");
  take(api.matmul, "cublasLtMatmul");
  take(api.heuristic, "cublasLtMatmulAlgoGetHeuristic");
  take(api.desc_create, "cublasLtMatmulDescCreate");
  take(api.desc_destroy, "cublasLtMatmulDescDestroy");
  take(api.desc_set, "cublasLtMatmulDescSetAttribute");
  take(api.layout_create, "cublasLtMatrixLayoutCreate");
  take(api.layout_destroy, "cublasLtMatrixLayoutDestroy");
  take(api.preference_create, "cublasLtMatmulPreferenceCreate");
  take(api.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  take(api.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  take(api.status_name, "cublasLtGetStatusName");
  return missing;
}

/// The library by its usual names, then where toolkits are installed without telling the dynamic linker.
void* open_library() {
  std::vector<std::string> folders = {""};
  if (const char* home = std::getenv("CUDA_HOME")) folders.push_back(std::string(home) + "/lib64/");
  folders.insert(folders.end(), {"/usr/local/cuda/lib64/", "/usr/local/cuda/lib/", "/opt/cuda/lib64/"});
  for (const std::string& folder : folders) {
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}) {
      if (void* library = dlopen((folder + name).c_str(), RTLD_LAZY | RTLD_LOCAL)) return library;
    }
  }
  return nullptr;
}

cudaDataType_t data_type(DType dtype) {
  if (dtype == DType::F16) return CUDA_R_16F;
  if (dtype == DType::BF16) return CUDA_R_16BF;
  if (dtype == DType::F32) return CUDA_R_32F;
  if (dtype == DType::F8_E4M3) return CUDA_R_8F_E4M3;
  throw Error(ErrorKind::run, "cuBLASLt", "no such operand type", format_name(dtype), "F32, F16, BF16, F8_E4M3");
}

/// What a pointer is aligned to, as far as algorithms care.
int64_t alignment(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer) | 256;
  return static_cast<int64_t>(address & (~address + 1));
}

class MatmulLtLibrary final : public MatmulLt {
 public:
  MatmulLtLibrary(const Api& api, cublasLtHandle_t handle, void* workspace)
      : api_(api), handle_(handle), workspace_(workspace) {
    describe(product_);
    ok(api_.preference_create(&preference_), "preference");
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspaceBytes));
    // Parts of a split sum stay in f32 until they are all there, whatever the output's type.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  }
  ~MatmulLtLibrary() override {
    for (auto& [key, plan] : plans_) {
      for (cublasLtMatrixLayout_t layout : {plan.a, plan.b, plan.d}) api_.layout_destroy(layout);
    }
    if (preference_) api_.preference_destroy(preference_);
    for (cublasLtMatmulDesc_t product : {product_, scaled_})
      if (product) api_.desc_destroy(product);
    api_.destroy(handle_);
    cudaFree(workspace_);
  }

  void matmul(const Tensor& x, int64_t x_stride, const Tensor& w, int64_t w_stride, const Tensor& out,
              int64_t out_stride, float beta, cudaStream_t stream) override {
    if (x.rows() == 0 || w.rows() == 0) return;
    const Plan& p = planned(x, x_stride, w, w_stride, out, out_stride, beta);
    const float alpha = 1;
    ok(api_.matmul(handle_, product_of(x, w), &alpha, w.data, p.a, x.data, p.b, &beta, out.data, p.d, out.data, p.d,
                   &p.algo, workspace_, kWorkspaceBytes, stream),
       "product");
  }
  std::string why_no_e4m3() override {
    constexpr int64_t kSize = 512;
    const Tensor operand(workspace_, DType::F8_E4M3, {kSize, kSize});  // only its address counts
    try {
      for (const DType type : {DType::F32, DType::BF16})
        planned(operand, kSize, operand, kSize, Tensor(workspace_, type, {kSize, kSize}), kSize, 0);
    } catch (const Error& error) {
      return error.what();
    }
    return {};
  }
  size_t workspace_bytes() const override { return kWorkspaceBytes; }

 private:
  /// m, n, k, strides of x, w and out, types and beta, alignments.
  using Key = std::array<int64_t, 8>;
  struct Plan {
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
    cublasLtMatmulAlgo_t algo{};
  };

  const Plan& planned(const Tensor& x, int64_t x_stride, const Tensor& w, int64_t w_stride, const Tensor& out,
                      int64_t out_stride, float beta) {
    const int64_t m = x.rows(), n = w.rows(), k = w.cols();
    if (x.dtype != w.dtype) throw Error(ErrorKind::run, "cuBLASLt", "operands of different types");
    const Key key = {m,
                     n,
                     k,
                     x_stride,
                     w_stride,
                     out_stride,
                     static_cast<int64_t>(x.dtype) << 32 | static_cast<int64_t>(out.dtype) << 1 | (beta != 0),
                     alignment(x.data) << 32 | alignment(w.data) << 16 | alignment(out.data)};
    auto found = plans_.find(key);
    if (found == plans_.end()) found = plans_.emplace(key, plan(key, x, w, out)).first;
    return found->second;
  }

  void ok(cublasStatus_t status, const char* what) const {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    throw Error(ErrorKind::run, "cuBLASLt", std::string(what) + " failed", api_.status_name(status));
  }
  template <class T>
  void prefer(cublasLtMatmulPreferenceAttributes_t attribute, T value) {
    ok(api_.preference_set(preference_, attribute, &value, sizeof(value)), "preference");
  }
  template <class T>
  void set(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t attribute, T value) {
    ok(api_.desc_set(product, attribute, &value, sizeof(value)), "descriptor");
  }
  void describe(cublasLtMatmulDesc_t& product) {
    ok(api_.desc_create(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F), "descriptor");
    set(product, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T), set(product, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
  }
  /// What the library is to do with these operands. The one for e4m3 is made when it is first wanted: libraries before
  /// 12.9 do not know its modes.
  cublasLtMatmulDesc_t product_of(const Tensor& x, const Tensor& w) {
    if (x.dtype != DType::F8_E4M3) return product_;
    if (!scaled_) describe(scaled_);
    const cublasLtMatmulMatrixScale_t of_rows = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    set(scaled_, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, of_rows), set(scaled_, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, of_rows);
    set(scaled_, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, static_cast<const void*>(row_scales(w)));
    set(scaled_, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, static_cast<const void*>(row_scales(x)));
    return scaled_;
  }
  void align(cublasLtMatmulPreferenceAttributes_t attribute, const void* pointer) {
    prefer(attribute, static_cast<uint32_t>(alignment(pointer)));
  }

  Plan plan(const Key& key, const Tensor& x, const Tensor& w, const Tensor& out) {
    const auto [m, n, k, x_stride, w_stride, out_stride, types, alignments] = key;
    const auto size = [](int64_t v) { return static_cast<uint64_t>(v); };
    Plan p;
    ok(api_.layout_create(&p.a, data_type(w.dtype), size(k), size(n), w_stride), "layout");
    ok(api_.layout_create(&p.b, data_type(x.dtype), size(k), size(m), x_stride), "layout");
    ok(api_.layout_create(&p.d, data_type(out.dtype), size(n), size(m), out_stride), "layout");
    align(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, w.data);
    align(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x.data);
    align(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out.data);
    align(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out.data);
    cublasLtMatmulHeuristicResult_t best{};
    int count = 0;
    const cublasStatus_t status =
        api_.heuristic(handle_, product_of(x, w), p.a, p.b, p.d, p.d, preference_, 1, &best, &count);
    if (status != CUBLAS_STATUS_SUCCESS || count == 0) {
      throw Error(ErrorKind::run, "cuBLASLt", "no algorithm for a product",
                  format_name(x.dtype) + " " + std::to_string(m) + " x " + std::to_string(n) + " x " +
                      std::to_string(k) + " to " + format_name(out.dtype));
    }
    p.algo = best.algo;
    return p;
  }

  Api api_;
  cublasLtHandle_t handle_;
  void* workspace_;
  cublasLtMatmulDesc_t product_ = nullptr, scaled_ = nullptr;
  cublasLtMatmulPreference_t preference_ = nullptr;
  std::map<Key, Plan> plans_;
};

}  // namespace

std::unique_ptr<MatmulLt> MatmulLt::open(std::string& why_not) {
  void* library = open_library();  // stays open: other instances use it, and closing it gains nothing
  if (!library) {
    why_not = "libcublasLt.so is not installed";
    return nullptr;
  }
  Api api{};
  if (const char* missing = resolve(library, api)) {
    why_not = std::string("libcublasLt.so has no ") + missing;
    return nullptr;
  }
  void* workspace = nullptr;
  if (cudaMalloc(&workspace, kWorkspaceBytes) != cudaSuccess) {
    cudaGetLastError();
    why_not = "no device memory for its workspace";
    return nullptr;
  }
  cublasLtHandle_t handle = nullptr;
  const cublasStatus_t status = api.create(&handle);
  if (status != CUBLAS_STATUS_SUCCESS) {
    cudaFree(workspace);
    why_not = std::string("cublasLtCreate: ") + api.status_name(status);
    return nullptr;
  }
  return std::make_unique<MatmulLtLibrary>(api, handle, workspace);
}

}  // namespace infer::cuda
