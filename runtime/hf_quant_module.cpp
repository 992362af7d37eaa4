// See hf_quant_module.h.
#include "runtime/hf_quant_module.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <span>

#include "infer/error.h"
#include "kernels/tensor.h"
#include "quant/formats.h"
#include "runtime/hf_owned.h"

namespace infer {
namespace {

uint32_t word_at(const std::byte* words, int64_t i) {
  uint32_t word;
  std::memcpy(&word, words + i * static_cast<int64_t>(sizeof word), sizeof word);
  return word;
}
uint32_t word_at(const HostTensor& words, int64_t i) { return word_at(words.data, i); }

/// Rows of codes in a file.
struct Lines {
  const std::byte* data;
  int64_t rows, row_bytes;
  ReadBytes read;

  /// Calls fn(codes, tile) with rows that hold those of `tile`, row_bytes apart, and the tile among them. Tiles share
  /// what was read for the one before, a quarter of a megabyte at a time.
  template <class Function>
  void with(Tile tile, TileCodes& out, Function&& fn) const {
    constexpr int64_t kBytes = 1 << 18;
    if (tile.row < out.first_line || tile.row + tile.n_rows > out.end_line) {
      const int64_t n_tiles = std::max(kBytes / (row_bytes * tile.n_rows), int64_t{1});
      const int64_t n = std::min(rows - tile.row, n_tiles * tile.n_rows);
      out.first_line = tile.row, out.end_line = tile.row + n;
      const auto bytes = static_cast<size_t>(n * row_bytes);
      if (out.lines.size() < bytes) out.lines.resize(bytes);
      copy_bytes(read, data + tile.row * row_bytes, bytes, out.lines.data());
    }
    tile.row -= out.first_line;
    fn(out.lines.data(), tile);
  }
};

std::string dims_text(const std::vector<int64_t>& dims) {
  std::string out;
  for (const int64_t n : dims) out += (out.empty() ? "[" : ", ") + std::to_string(n);
  return out + "]";
}

int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// The parts of one module, checked as they are asked for.
class ModuleReader {
 public:
  ModuleReader(const Checkpoint& checkpoint, const HfQuant& quant, const HfModule& module)
      : checkpoint_(checkpoint), quant_(quant), module_(module) {}

  KeptMatrix read(const KeepOptions& options) const {
    KeptMatrix out = keep_as(options);
    for (const auto& [part, tensor] : module_.parts) out.tensor.made_of.emplace_back(tensor->data, tensor->bytes);
    return out;
  }

 private:
  static constexpr int64_t kAtATime = 1024;  ///< scales

  KeptMatrix keep_as(const KeepOptions& options) const {
    switch (quant_.method) {
      case QuantMethod::awq:
        return keep(read_awq(), options);
      case QuantMethod::gptq:
        return keep(read_gptq(), options);
      case QuantMethod::packed_ints:
        return keep(read_packed(), options);
      case QuantMethod::ints:
        return keep(read_ints(), options);
      default:
        return keep(read_floats(), options);
    }
  }

  const HostTensor* find(std::string_view part) const {
    const auto it = module_.parts.find(part);
    return it == module_.parts.end() ? nullptr : it->second;
  }

  const HostTensor& get(std::string_view part, DType dtype) const {
    const HostTensor* tensor = find(part);
    if (!tensor) checkpoint_.refuse(module_.name, "required tensor is missing", "", std::string(part));
    if (tensor->dtype != dtype)
      checkpoint_.refuse(tensor->name, "wrong type", format_name(tensor->dtype), format_name(dtype));
    return *tensor;
  }

  void require_dims(const HostTensor& tensor, const std::vector<int64_t>& dims) const {
    if (tensor.dims != dims) checkpoint_.refuse(tensor.name, "wrong shape", dims_text(tensor.dims), dims_text(dims));
  }

  /// A matrix of words or bytes, and what its dimensions mean.
  const HostTensor& get_matrix(std::string_view part, DType dtype) const {
    const HostTensor& tensor = get(part, dtype);
    if (tensor.dims.size() != 2) checkpoint_.refuse(tensor.name, "wrong shape", dims_text(tensor.dims), "a matrix");
    for (const int64_t n : tensor.dims)
      if (n > INT32_MAX / 8) checkpoint_.refuse(tensor.name, "too large", std::to_string(n));
    return tensor;
  }

  void require_finite(const HostTensor& tensor, std::span<const float> values) const {
    if (!std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); }))
      checkpoint_.refuse(tensor.name, "a scale is not finite");
  }
  std::vector<float> finite_floats(const HostTensor& tensor) const {
    std::vector<float> values = owned_floats(checkpoint_, tensor);
    require_finite(tensor, values);
    return values;
  }

  IntMatrix matrix(int64_t rows, int64_t cols) const {
    IntMatrix m;
    m.name = module_.name + ".weight";
    m.rows = rows, m.cols = cols;
    m.bits = quant_.bits;
    m.symmetric = quant_.symmetric;
    m.groups = ScaleGrid::over(rows, cols, 1, quant_.scale_cols).cols;
    return m;
  }

  /// Groups of neighbouring columns, or where `part` puts them.
  void read_groups(IntMatrix& m, std::string_view part) const {
    m.group_of.resize(static_cast<size_t>(m.cols));
    const HostTensor* index = find(part);
    if (!index && quant_.any_order) get(part, DType::I32);  // refuses by name
    if (!index) {
      const int64_t size = quant_.scale_cols > 0 ? quant_.scale_cols : m.cols;
      for (int64_t c = 0; c < m.cols; ++c) m.group_of[static_cast<size_t>(c)] = static_cast<int32_t>(c / size);
      return;
    }
    require_dims(get(part, DType::I32), {m.cols});
    for (int64_t c = 0; c < m.cols; ++c) {
      const auto group = static_cast<int32_t>(word_at(*index, c));
      if (group < 0 || group >= m.groups)
        checkpoint_.refuse(index->name, "no such group", std::to_string(group), "0.." + std::to_string(m.groups - 1));
      m.group_of[static_cast<size_t>(c)] = group;
    }
  }

  /// `scales`, [groups, rows].
  void read_column_scales(IntMatrix& m) const {
    const HostTensor* scales = find("scales");
    if (!scales) checkpoint_.refuse(module_.name, "required tensor is missing", "", "scales");
    require_dims(*scales, {m.groups, m.rows});
    const DType dtype = scales->dtype;
    float values[kAtATime];
    for (int64_t at = 0; at < m.rows * m.groups; at += kAtATime) {
      const int64_t n = std::min(kAtATime, m.rows * m.groups - at);
      if (!decode_row(dtype, scales->data + row_bytes(dtype, at), values, n))
        checkpoint_.refuse(scales->name, "unsupported format for this tensor", format_name(dtype), "F32, F16, BF16");
      require_finite(*scales, {values, static_cast<size_t>(n)});
      if (dtype != DType::F16) note_scales({values, static_cast<size_t>(n)}, m);
    }
    m.scales = [dtype, data = scales->data, rows = m.rows, groups = m.groups](int64_t row, int64_t n, float* out) {
      float some[kAtATime];
      for (; n > 0; row += kAtATime, n -= kAtATime, out += kAtATime * groups)
        for (int64_t g = 0; g < groups; ++g) {
          const int64_t here = std::min(kAtATime, n);
          decode_row(dtype, data + row_bytes(dtype, g * rows + row), some, here);
          for (int64_t r = 0; r < here; ++r) out[r * groups + g] = some[r];
        }
    };
  }

  /// Zero points, zero(row, group) as the file has them. One of 0 is written as 2^bits - 1 where 1 is taken off, hence
  /// the mask.
  template <class Function>
  void read_zeros(IntMatrix& m, Function zero) const {
    m.zeros = [zero, groups = m.groups, mask = (1u << m.bits) - 1, bias = static_cast<uint32_t>(quant_.zero_bias)](
                  int64_t row, int64_t n, uint8_t* out) {
      for (int64_t r = row; r < row + n; ++r)
        for (int64_t g = 0; g < groups; ++g) *out++ = static_cast<uint8_t>((zero(r, g) + bias) & mask);
    };
  }

  /// Refuses one that is not in the middle. `words` are [groups][rows * bits / 32, rounded up].
  void require_middle(const IntMatrix& m, const HostTensor& words) const {
    const int64_t per_word = 32 / m.bits, n_words = divided_up(m.rows, per_word);
    const uint32_t mask = (1u << m.bits) - 1, middle = 1u << (m.bits - 1);
    for (int64_t i = 0; i < m.groups * n_words; ++i) {
      const int64_t n = std::min(per_word, m.rows - i % n_words * per_word);
      const uint32_t word = word_at(words, i);
      for (int64_t k = 0; k < n; ++k) {
        const uint32_t z = ((word >> (k * m.bits)) + static_cast<uint32_t>(quant_.zero_bias)) & mask;
        if (z != middle)
          checkpoint_.refuse(words.name, "a zero point that is not in the middle, although the config says symmetric",
                             std::to_string(z), std::to_string(middle));
      }
    }
  }

  /// What a device may unpack itself: whole groups of 32 columns, which lie together and share a scale of 16 bits.
  void note_columns(IntMatrix& m, ColumnCodes::Order order, const HostTensor& codes, const HostTensor& zeros) const {
    const HostTensor& scales = *find("scales");
    const int64_t group_cols = quant_.scale_cols > 0 ? quant_.scale_cols : m.cols;
    for (int64_t c = 0; c < m.cols; ++c)
      if (m.group_of[static_cast<size_t>(c)] != c / group_cols) return;
    if (scales.dtype != DType::F16 || group_cols % kGroup != 0 || m.cols % kGroup != 0) return;
    ColumnCodes columns;
    columns.order = order;
    columns.bits = m.bits;
    columns.rows = m.rows, columns.cols = m.cols, columns.group_cols = group_cols;
    columns.codes = codes.data, columns.scales = scales.data;
    columns.zeros = m.symmetric ? nullptr : zeros.data;
    columns.zero_bias = quant_.zero_bias;
    columns.read = checkpoint_.read;
    m.columns = std::make_shared<const ColumnCodes>(std::move(columns));
  }

  IntMatrix read_awq() const {
    const HostTensor& words = get_matrix("qweight", DType::I32);
    IntMatrix m = matrix(words.dims[1] * 8, words.dims[0]);
    const HostTensor& zeros = get("qzeros", DType::I32);
    require_dims(zeros, {m.groups, words.dims[1]});
    read_column_scales(m);
    read_groups(m, "");
    if (m.symmetric) require_middle(m, zeros);
    read_zeros(m, [data = zeros.data, per_line = words.dims[1]](int64_t r, int64_t g) {
      return word_at(data, g * per_line + r / 8) >> (4 * kAwqNibble[r % 8]);
    });
    note_columns(m, ColumnCodes::Order::awq, words, zeros);
    m.codes = [data = words.data, rows = m.rows](const Tile& tile, TileCodes& out) {
      awq_codes(data, rows, tile, out);
    };
    return m;
  }

  IntMatrix read_gptq() const {
    const HostTensor& words = get_matrix("qweight", DType::I32);
    const int64_t per_word = 32 / quant_.bits;
    IntMatrix m = matrix(words.dims[1], words.dims[0] * per_word);
    const HostTensor& zeros = get("qzeros", DType::I32);
    const int64_t zero_words = divided_up(m.rows, per_word);
    require_dims(zeros, {m.groups, zero_words});
    read_column_scales(m);
    read_groups(m, "g_idx");
    if (m.symmetric) require_middle(m, zeros);
    read_zeros(m, [data = zeros.data, zero_words, per_word, bits = m.bits](int64_t r, int64_t g) {
      return word_at(data, g * zero_words + r / per_word) >> (r % per_word * bits);
    });
    note_columns(m, ColumnCodes::Order::gptq, words, zeros);
    m.codes = [data = words.data, rows = m.rows](const Tile& tile, TileCodes& out) {
      gptq_codes(data, rows, tile, out);
    };
    return m;
  }

  /// Scales in the grid of a compressed-tensors or fp8 module, under either name: both multiply.
  std::vector<float> grid_scales(const ScaleGrid& grid) const {
    const HostTensor *scale = find("weight_scale"), *inverse = find("weight_scale_inv");
    if (scale && inverse) checkpoint_.refuse(module_.name, "both weight_scale and weight_scale_inv", "", "one of them");
    if (!scale) scale = inverse;
    if (!scale) checkpoint_.refuse(module_.name, "required tensor is missing", "", "weight_scale");
    const bool one = grid.rows * grid.cols == 1 && scale->dims == std::vector<int64_t>{1};
    const bool column = grid.cols == 1 && scale->dims == std::vector<int64_t>{grid.rows};
    if (!one && !column) require_dims(*scale, {grid.rows, grid.cols});
    return finite_floats(*scale);
  }

  /// The scales of integers, for each row.
  void read_row_scales(IntMatrix& m) const {
    const ScaleGrid grid = ScaleGrid::over(m.rows, m.cols, quant_.scale_rows, quant_.scale_cols);
    std::vector<float> values = grid_scales(grid);
    note_scales(values, m);
    m.scales = [values = std::move(values), grid](int64_t row, int64_t n, float* out) {
      for (int64_t r = row; r < row + n; ++r, out += grid.cols)
        std::copy_n(values.data() + r / grid.cell_rows * grid.cols, grid.cols, out);
    };
  }

  int64_t shape_part(const HostTensor& shape, int64_t i) const {
    int64_t n = 0;
    if (shape.dtype == DType::I32) return static_cast<int32_t>(word_at(shape, i));
    std::memcpy(&n, shape.data + i * static_cast<int64_t>(sizeof n), sizeof n);
    return n;
  }

  IntMatrix read_packed() const {
    const HostTensor& words = get_matrix("weight_packed", DType::I32);
    const HostTensor* shape = find("weight_shape");
    const HostTensor& sizes = get("weight_shape", shape && shape->dtype == DType::I32 ? DType::I32 : DType::I64);
    require_dims(sizes, {2});
    const int64_t rows = shape_part(sizes, 0), cols = shape_part(sizes, 1), per_word = 32 / quant_.bits;
    if (rows != words.dims[0] || cols < 1 || cols > INT32_MAX || divided_up(cols, per_word) != words.dims[1])
      checkpoint_.refuse(sizes.name, "does not fit weight_packed", dims_text({rows, cols}), dims_text(words.dims));
    IntMatrix m = matrix(rows, cols);
    read_row_scales(m);
    read_groups(m, "weight_g_idx");
    if (!m.symmetric) {
      const HostTensor& zeros = get("weight_zero_point", DType::I32);
      require_dims(zeros, {divided_up(rows, per_word), m.groups});
      read_zeros(m, [data = zeros.data, groups = m.groups, per_word, bits = m.bits](int64_t r, int64_t g) {
        return word_at(data, r / per_word * groups + g) >> (r % per_word * bits);
      });
    }
    m.tiles = kRowTiles;
    m.codes = [lines = Lines{words.data, rows, words.dims[1] * 4, checkpoint_.read}](const Tile& tile, TileCodes& out) {
      lines.with(tile, out, [&](const std::byte* codes, const Tile& within) {
        packed_codes(codes, lines.row_bytes / 4, within, out);
      });
    };
    return m;
  }

  IntMatrix read_ints() const {
    const HostTensor& codes = get_matrix("weight", DType::I8);
    IntMatrix m = matrix(codes.dims[0], codes.dims[1]);
    read_row_scales(m);
    read_groups(m, "weight_g_idx");
    if (!m.symmetric) {
      const HostTensor& zeros = get("weight_zero_point", DType::I8);
      require_dims(zeros, {m.rows, m.groups});
      read_zeros(m, [data = zeros.data, groups = m.groups](int64_t r, int64_t g) {
        return static_cast<uint32_t>(data[r * groups + g]) ^ 128u;
      });
    }
    m.tiles = kRowTiles;
    m.codes = [lines = Lines{codes.data, m.rows, m.cols, checkpoint_.read}](const Tile& tile, TileCodes& out) {
      lines.with(tile, out, [&](const std::byte* bytes, const Tile& within) {
        signed_codes(bytes, lines.row_bytes, within, out);
      });
    };
    return m;
  }

  FloatMatrix read_floats() const {
    const HostTensor& codes = get_matrix("weight", DType::F8_E4M3);
    FloatMatrix m;
    m.path = checkpoint_.path;
    m.name = codes.name;
    m.rows = codes.dims[0], m.cols = codes.dims[1];
    m.grid = ScaleGrid::over(m.rows, m.cols, quant_.scale_rows, quant_.scale_cols);
    m.scale = grid_scales(m.grid);
    m.data = codes.data;
    m.read = checkpoint_.read;
    return m;
  }

  const Checkpoint& checkpoint_;
  const HfQuant& quant_;
  const HfModule& module_;
};

}  // namespace

KeptMatrix read_module(const Checkpoint& checkpoint, const HfQuant& quant, const HfModule& module,
                       const KeepOptions& options) {
  return ModuleReader(checkpoint, quant, module).read(options);
}

}  // namespace infer
