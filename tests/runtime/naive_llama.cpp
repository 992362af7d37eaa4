#include "tests/runtime/naive_llama.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "quant/formats.h"

namespace infer::test {
namespace {

using Row = std::vector<double>;

class Llama {
 public:
  explicit Llama(const Checkpoint& file)
      : file_(file),
        n_layers_(file.get_int("llama.block_count", 1, 100)),
        n_heads_(file.get_int("llama.attention.head_count", 1, 100)),
        n_kv_heads_(file.get_int("llama.attention.head_count_kv", 1, 100)),
        base_(file.get_float("llama.rope.freq_base", 1, 1e9)),
        eps_(file.get_float("llama.attention.layer_norm_rms_epsilon", 0, 1)) {}

  std::map<std::string, Rows> inputs(const std::vector<int32_t>& ids) {
    const Rows embedding = matrix("token_embd.weight");
    Rows x;
    for (const int32_t id : ids) x.push_back(embedding.at(static_cast<size_t>(id)));
    for (int64_t layer = 0; layer < n_layers_; ++layer) {
      prefix_ = "blk." + std::to_string(layer) + ".";
      Rows normed = norm(x, prefix_ + "attn_norm.weight");
      Rows q = product("attn_q", normed), k = product("attn_k", normed);
      rotate(q, n_heads_), rotate(k, n_kv_heads_);
      add(x, product("attn_output", attend(q, k, product("attn_v", normed))));
      normed = norm(x, prefix_ + "ffn_norm.weight");
      Rows gate = product("ffn_gate", normed);
      const Rows up = product("ffn_up", normed);
      for (size_t t = 0; t < gate.size(); ++t)
        for (size_t i = 0; i < gate[t].size(); ++i) gate[t][i] *= up[t][i] / (1 + std::exp(-gate[t][i]));
      add(x, product("ffn_down", gate));
    }
    seen_["output.weight"] = norm(x, "output_norm.weight");
    return seen_;
  }

 private:
  Rows matrix(const std::string& name) const {
    const HostTensor* t = file_.find_tensor(name);
    if (!t) throw std::runtime_error("no tensor " + name);
    const auto columns = static_cast<size_t>(t->dims.back());
    std::vector<float> numbers(static_cast<size_t>(t->n_elements()));
    if (!decode_row(t->dtype, t->data, numbers.data(), t->n_elements())) throw std::runtime_error("no decoder");
    Rows out;
    for (size_t at = 0; at < numbers.size(); at += columns)
      out.emplace_back(numbers.begin() + static_cast<long>(at), numbers.begin() + static_cast<long>(at + columns));
    return out;
  }

  Rows norm(const Rows& x, const std::string& name) const {
    const Row weight = matrix(name).at(0);
    Rows out = x;
    for (Row& row : out) {
      double squares = 0;
      for (const double v : row) squares += v * v;
      const double inverse = 1 / std::sqrt(squares / static_cast<double>(row.size()) + eps_);
      for (size_t i = 0; i < row.size(); ++i) row[i] *= inverse * weight[i];
    }
    return out;
  }

  Rows product(const std::string& part, const Rows& x) {
    const std::string name = prefix_ + part + ".weight";
    seen_[name] = x;
    const Rows w = matrix(name);
    Rows out(x.size(), Row(w.size()));
    for (size_t t = 0; t < x.size(); ++t)
      for (size_t r = 0; r < w.size(); ++r)
        for (size_t i = 0; i < w[r].size(); ++i) out[t][r] += x[t][i] * w[r][i];
    return out;
  }

  /// Pairs (2i, 2i + 1) of each head, as this architecture's files have them.
  void rotate(Rows& x, int64_t n_heads) const {
    for (size_t t = 0; t < x.size(); ++t) {
      const size_t head_dim = x[t].size() / static_cast<size_t>(n_heads);
      for (size_t i = 0; i < x[t].size(); i += 2) {
        const double power = static_cast<double>(i % head_dim) / static_cast<double>(head_dim);
        const double angle = static_cast<double>(t) * std::pow(base_, -power), a = x[t][i], b = x[t][i + 1];
        x[t][i] = a * std::cos(angle) - b * std::sin(angle);
        x[t][i + 1] = a * std::sin(angle) + b * std::cos(angle);
      }
    }
  }

  Rows attend(const Rows& q, const Rows& k, const Rows& v) const {
    Rows out(q.size(), Row(q[0].size()));
    const size_t n_heads = static_cast<size_t>(n_heads_), group = n_heads / static_cast<size_t>(n_kv_heads_);
    const size_t dim = q[0].size() / n_heads;
    for (size_t t = 0; t < q.size(); ++t)
      for (size_t h = 0; h < n_heads; ++h) {
        const size_t to = h * dim, from = h / group * dim;
        Row weights;
        double total = 0;
        for (size_t s = 0; s <= t; ++s) {
          double score = 0;
          for (size_t i = 0; i < dim; ++i) score += q[t][to + i] * k[s][from + i];
          weights.push_back(std::exp(score / std::sqrt(static_cast<double>(dim))));
          total += weights.back();
        }
        for (size_t s = 0; s <= t; ++s)
          for (size_t i = 0; i < dim; ++i) out[t][to + i] += weights[s] / total * v[s][from + i];
      }
    return out;
  }

  static void add(Rows& x, const Rows& branch) {
    for (size_t t = 0; t < x.size(); ++t)
      for (size_t i = 0; i < x[t].size(); ++i) x[t][i] += branch[t][i];
  }

  const Checkpoint& file_;
  int64_t n_layers_, n_heads_, n_kv_heads_;
  double base_, eps_;
  std::string prefix_;
  std::map<std::string, Rows> seen_;
};

}  // namespace

std::map<std::string, Rows> naive_llama_inputs(const Checkpoint& file, const std::vector<int32_t>& ids) {
  return Llama(file).inputs(ids);
}

}  // namespace infer::test
