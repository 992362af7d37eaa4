// The run-time side of the format table: names, sizes, and rows decoded and encoded on the host. Rows are copied block
// by block into an aligned local, since files put them at any address.
#include "quant/formats.h"

#include <cstring>
#include <limits>

namespace infer {
namespace {

template <class... F>
struct InfoTable {
  FormatInfo rows[sizeof...(F)] = {{F::id, F::name, F::block, sizeof(typename F::Block)}...};
};

template <class... F>
constexpr InfoTable<F...> make_table(FormatList<F...>) {
  return {};
}

constexpr auto kDecodable = make_table(Formats{});
constexpr auto kRowDecodable = make_table(RowFormats{});
constexpr auto kMade = make_table(MadeFormats{});

// Types that a file may name and we do not decode: integers, formats of other programs' kernels, formats that were
// withdrawn. Here so that an error can name them and a reader can step over them.
constexpr FormatInfo kNamedOnly[] = {
    {DType::Q4_2, "Q4_2", 16, 10},
    {DType::Q4_3, "Q4_3", 16, 12},
    {DType::Q8_1, "Q8_1", 32, 36},
    {DType::Q8_K, "Q8_K", 256, 292},
    {DType::I8, "I8", 1, 1},
    {DType::I16, "I16", 1, 2},
    {DType::I32, "I32", 1, 4},
    {DType::I64, "I64", 1, 8},
    {DType::F64, "F64", 1, 8},
    {DType::Q4_0_4_4, "Q4_0_4_4", 32, 18},
    {DType::Q4_0_4_8, "Q4_0_4_8", 32, 18},
    {DType::Q4_0_8_8, "Q4_0_8_8", 32, 18},
    {DType::IQ4_NL_4_4, "IQ4_NL_4_4", 32, 18},
    {DType::IQ4_NL_4_8, "IQ4_NL_4_8", 32, 18},
    {DType::IQ4_NL_8_8, "IQ4_NL_8_8", 32, 18},
    {DType::NVFP4, "NVFP4", 64, 36},
    {DType::Q1_0, "Q1_0", 128, 18},
    {DType::F8_E4M3, "F8_E4M3", 1, 1},
    {DType::F8_E5M2, "F8_E5M2", 1, 1},
    {DType::U8, "U8", 1, 1},
};

template <class Matches>
const FormatInfo* find_where(Matches matches) {
  for (const FormatInfo& info : kDecodable.rows) {
    if (matches(info)) return &info;
  }
  for (const FormatInfo& info : kRowDecodable.rows) {
    if (matches(info)) return &info;
  }
  for (const FormatInfo& info : kMade.rows) {
    if (matches(info)) return &info;
  }
  for (const FormatInfo& info : kNamedOnly) {
    if (matches(info)) return &info;
  }
  return nullptr;
}

// By hand: the C library's toupper depends on the locale.
char upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c; }

bool same_name(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (upper(a[i]) != upper(b[i])) return false;
  }
  return true;
}

bool overflows(int64_t a, int64_t b) { return b != 0 && a > std::numeric_limits<int64_t>::max() / b; }

template <Format F>
void decode_blocks(const char* src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n; i += F::block, src += sizeof(typename F::Block)) {
    typename F::Block block;
    std::memcpy(&block, src, sizeof block);
    if constexpr (PlainFormat<F>) {
      dst[i] = F::decode(block);
    } else {
      for (int group = 0; group < F::block / kGroup; ++group) F::decode(block, group, dst + i + group * kGroup);
    }
  }
}

template <Format F>
void encode_blocks(const float* src, char* dst, int64_t n) {
  for (int64_t i = 0; i < n; i += F::block, dst += sizeof(typename F::Block)) {
    typename F::Block block;
    if constexpr (PlainFormat<F>) {
      block = F::encode(src[i]);
    } else {
      F::encode(src + i, block);
    }
    std::memcpy(dst, &block, sizeof block);
  }
}

}  // namespace

const FormatInfo* find_format(DType dtype) {
  return find_where([&](const FormatInfo& info) { return info.id == dtype; });
}

const FormatInfo* find_format(std::string_view name) {
  return find_where([&](const FormatInfo& info) { return same_name(info.name, name); });
}

bool decodable(DType dtype) { return in_list(Formats{}, dtype); }

bool gpu_decodable(DType dtype) { return in_list(GpuFormats{}, dtype); }

bool row_decodable(DType dtype) { return gpu_decodable(dtype) || in_list(RowFormats{}, dtype); }

int64_t row_bytes(DType dtype, int64_t n) {
  const FormatInfo* info = find_format(dtype);
  if (!info || n < 0 || n % info->block != 0) return -1;
  const int64_t blocks = n / info->block;
  return overflows(blocks, info->block_bytes) ? -1 : blocks * info->block_bytes;
}

int64_t tensor_bytes(DType dtype, int64_t rows, int64_t n) {
  const int64_t bytes = row_bytes(dtype, n);
  if (bytes < 0 || rows < 0 || overflows(rows, bytes)) return -1;
  return rows * bytes;
}

bool decode_row(DType dtype, const void* src, float* dst, int64_t n) {
  if (row_bytes(dtype, n) < 0) return false;
  return visit_any_format(dtype, [&]<class F>() { decode_blocks<F>(static_cast<const char*>(src), dst, n); });
}

bool encode_row(DType dtype, const float* src, void* dst, int64_t n) {
  if (row_bytes(dtype, n) < 0) return false;
  bool done = false;
  visit_format(dtype, [&]<class F>() {
    if constexpr (PlainFormat<F> || EncodableFormat<F>) {
      encode_blocks<F>(src, static_cast<char*>(dst), n);
      done = true;
    }
  });
  return done;
}

}  // namespace infer
