// The tiny model's keys, vocabularies and weights.
#include "tests/tiny_model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <stdexcept>

namespace infer::test {
namespace {

enum TokenType : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kByte = 6 };

constexpr const char* kChatMl =
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

// Words that both vocabularies know as one token, besides all bytes.
const std::vector<std::string> kWords = {"the", "and", "of", "to", "in", "is", "model", "hello", "world", "you"};

struct Vocabulary {
  std::vector<std::string> tokens, merges;
  std::vector<float> scores;
  std::vector<int32_t> types;
  void add(const std::string& token, float score, int32_t type) {
    tokens.push_back(token);
    scores.push_back(score);
    types.push_back(type);
  }
};

std::string utf8(uint32_t c) {
  if (c < 0x80) return std::string(1, static_cast<char>(c));
  if (c < 0x800) return {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 63))};
  return {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 63)),
          static_cast<char>(0x80 | (c & 63))};
}

// The character that stands for a byte in GPT-2's vocabulary: printable ones for themselves, the rest from U+0100 up.
std::string byte_character(unsigned byte) {
  const auto is_kept = [](unsigned b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; };
  if (is_kept(byte)) return utf8(byte);
  unsigned n = 0;
  for (unsigned b = 0; b < byte; ++b) n += !is_kept(b);
  return utf8(256 + n);
}

Vocabulary bpe_vocabulary() {
  Vocabulary v;
  for (const char* special : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}) v.add(special, 0, kControl);
  for (unsigned b = 0; b < 256; ++b) v.add(byte_character(b), 0, kNormal);
  const auto merge = [&](const std::string& left, const std::string& right) {
    for (const std::string& known : v.tokens)
      if (known == left + right) return;
    v.merges.push_back(left + " " + right);
    v.add(left + right, 0, kNormal);
  };
  for (const std::string& word : kWords) {  // grown letter by letter, then with the space before it
    std::string left(1, word[0]);
    for (size_t i = 1; i < word.size(); ++i) {
      merge(left, std::string(1, word[i]));
      left += word[i];
    }
    merge("\u0120", left);
  }
  return v;
}

Vocabulary spm_vocabulary() {
  Vocabulary v;
  v.add("<unk>", 0, kUnknown);
  v.add("<s>", 0, kControl);
  v.add("</s>", 0, kControl);
  for (unsigned b = 0; b < 256; ++b) {
    static const char hex[] = "0123456789ABCDEF";
    v.add(std::string("<0x") + hex[b >> 4] + hex[b & 15] + ">", 0, kByte);
  }
  float score = 0;
  for (const std::string& word : kWords)  // every prefix, with and without the space, so that merging can climb
    for (size_t n = 2; n <= word.size(); ++n)
      for (const std::string& piece : {word.substr(0, n), "\u2581" + word.substr(0, n)}) {
        bool known = false;
        for (const std::string& t : v.tokens) known = known || t == piece;
        if (!known) v.add(piece, score -= 1, kNormal);
      }
  v.add("\u2581", score -= 1, kNormal);
  for (char c = '!'; c <= '~'; ++c) v.add(std::string(1, c), score -= 1, kNormal);
  v.add("\n", score -= 1, kNormal);
  v.add("<|im_start|>", 0, kControl);
  v.add("<|im_end|>", 0, kControl);
  return v;
}

void add_vocabulary(GgufWriter& file, const TinyModel& model, const Vocabulary& v) {
  const auto id = [&](const std::string& token) {
    for (size_t i = 0; i < v.tokens.size(); ++i)
      if (v.tokens[i] == token) return static_cast<uint32_t>(i);
    throw std::logic_error("no token " + token);
  };
  file.text("tokenizer.ggml.model", model.spm ? "llama" : "gpt2");
  file.text("tokenizer.ggml.pre", model.spm ? "default" : "gpt-2");
  file.texts("tokenizer.ggml.tokens", v.tokens);
  if (model.spm) file.numbers("tokenizer.ggml.scores", f32, v.scores);
  file.numbers("tokenizer.ggml.token_type", i32, v.types);
  if (!model.spm) file.texts("tokenizer.ggml.merges", v.merges);
  file.number("tokenizer.ggml.bos_token_id", model.spm ? id("<s>") : id("<|endoftext|>"));
  file.number("tokenizer.ggml.eos_token_id", id("<|im_end|>"));
  if (model.spm) file.number("tokenizer.ggml.unknown_token_id", id("<unk>"));
  file.flag("tokenizer.ggml.add_bos_token", model.spm);
  file.flag("tokenizer.ggml.add_eos_token", false);
  if (model.chat_template) file.text("tokenizer.chat_template", kChatMl);
}

uint16_t half_bits(float value) {  // of a number that float16 holds exactly as a normal number, or zero
  const auto bits = std::bit_cast<uint32_t>(value);
  if (value == 0) return 0;
  return static_cast<uint16_t>((bits >> 16 & 0x8000) | (((bits >> 23 & 255) - 112) << 10) | (bits >> 13 & 1023));
}

// Integers in -127..127 times 2^-exponent, in the model's type.
class WeightMaker {
 public:
  WeightMaker(DType type, uint32_t seed) : type_(type), state_(seed * 2654435761u + 12345u) {}

  /// `n`: 0, or how many matrices a stack of them holds.
  void add(GgufWriter& file, const std::string& name, int64_t rows, int64_t columns, int exponent, int64_t n = 0) {
    std::string data;
    for (int64_t i = 0; i < std::max<int64_t>(n, 1) * rows * columns; ++i) {
      const int code = next();
      const float value = std::ldexp(static_cast<float>(code), -exponent);
      if (type_ == DType::F32) data += le(value);
      if (type_ == DType::F16) data += le(half_bits(value));
      if (type_ == DType::BF16) data += le(static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16));
      if (type_ != DType::Q8_0) continue;
      if (i % 32 == 0) data += le(half_bits(std::ldexp(1.0f, -exponent)));
      data += le(static_cast<int8_t>(code));
    }
    if (data.empty()) throw std::logic_error("no weights of this type");
    file.tensor(name, type_, n > 0 ? std::vector{n, rows, columns} : std::vector{rows, columns}, data);
  }

  void add_norm(GgufWriter& file, const std::string& name, int64_t n) {
    std::string data;
    for (int64_t i = 0; i < n; ++i) data += le(1.0f + std::ldexp(static_cast<float>(next()), -10));
    file.tensor(name, DType::F32, {n}, data);
  }

 private:
  int next() {  // xorshift: the same model on every machine
    state_ ^= state_ << 13, state_ ^= state_ >> 17, state_ ^= state_ << 5;
    return static_cast<int>(state_ % 255) - 127;
  }

  DType type_;
  uint32_t state_;
};

void add_weights(GgufWriter& file, const TinyModel& m, int64_t vocab) {
  WeightMaker make(m.weights, m.seed), router(DType::F32, m.seed + 1);
  const int64_t head_dim = m.dim / m.n_heads, kv_dim = head_dim * m.n_kv_heads;
  make.add(file, "token_embd.weight", vocab, m.dim, 7);
  for (int64_t i = 0; i < m.n_layers; ++i) {
    const std::string blk = "blk." + std::to_string(i) + ".";
    make.add_norm(file, blk + "attn_norm.weight", m.dim);
    make.add(file, blk + "attn_q.weight", m.dim, m.dim, 9);
    make.add(file, blk + "attn_k.weight", kv_dim, m.dim, 9);
    make.add(file, blk + "attn_v.weight", kv_dim, m.dim, m.value_exponent);
    make.add(file, blk + "attn_output.weight", m.dim, m.dim, 9);
    make.add_norm(file, blk + "ffn_norm.weight", m.dim);
    const std::string end = m.n_experts > 0 ? "_exps.weight" : ".weight";
    if (m.n_experts > 0) router.add(file, blk + "ffn_gate_inp.weight", m.n_experts, m.dim, 7);
    make.add(file, blk + "ffn_gate" + end, m.ffn_dim, m.dim, 9, m.n_experts);
    make.add(file, blk + "ffn_up" + end, m.ffn_dim, m.dim, 9, m.n_experts);
    make.add(file, blk + "ffn_down" + end, m.dim, m.ffn_dim, 9, m.n_experts);
  }
  make.add_norm(file, "output_norm.weight", m.dim);
  make.add(file, "output.weight", vocab, m.dim, 8);
}

}  // namespace

GgufWriter tiny_model(const TinyModel& model) {
  GgufWriter file;
  const Vocabulary vocabulary = model.spm ? spm_vocabulary() : bpe_vocabulary();
  const auto n = [](int64_t value) { return static_cast<uint32_t>(value); };
  file.text("general.architecture", "llama");
  file.text("general.name", "tiny test model");
  file.number("llama.block_count", n(model.n_layers));
  file.number("llama.context_length", n(model.context));
  file.number("llama.embedding_length", n(model.dim));
  file.number("llama.feed_forward_length", n(model.ffn_dim));
  file.number("llama.attention.head_count", n(model.n_heads));
  file.number("llama.attention.head_count_kv", n(model.n_kv_heads));
  file.real("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  file.number("llama.rope.dimension_count", n(model.dim / model.n_heads));
  file.real("llama.rope.freq_base", 10000.0f);
  if (model.n_experts > 0) {
    file.number("llama.expert_count", n(model.n_experts));
    file.number("llama.expert_used_count", n(model.n_active));
  }
  file.number("llama.vocab_size", n(static_cast<int64_t>(vocabulary.tokens.size())));
  add_vocabulary(file, model, vocabulary);
  add_weights(file, model, static_cast<int64_t>(vocabulary.tokens.size()));
  return file;
}

void write_tiny_model(const std::string& path, const TinyModel& model) { tiny_model(model).write(path); }

}  // namespace infer::test
