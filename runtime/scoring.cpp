// Logits after many positions of texts that are known as a whole: Engine::logits() and Engine::score(). The texts are
// in no batch with requests; they have pages of their own, which are free again afterwards.
#include <algorithm>

#include "runtime/engine_impl.h"

namespace infer {

struct Scoring::Impl {
  struct Text {
    std::vector<TokenId> ids;
    SequencePages pages;
    int64_t n_computed = 0;
    int64_t left() const { return static_cast<int64_t>(ids.size()) - n_computed; }
  };

  Impl(Engine::Impl& engine, int64_t first_position) : engine(engine), first(first_position) {}
  ~Impl() {
    for (Text& text : texts) engine.release(text.pages);
  }

  Engine::Impl& engine;
  int64_t first;
  std::vector<Text> texts;
  // Of a step, kept from one to the next.
  std::vector<StepSequence> step;
  std::vector<size_t> step_texts;  ///< which text each sequence of the step is
};

std::unique_ptr<Scoring::Impl> Engine::Impl::score(std::vector<std::vector<TokenId>> texts, int64_t first) {
  if (texts.empty() || static_cast<int64_t>(texts.size()) > plan_.n_seqs)
    throw Error(ErrorKind::usage, "texts", "out of range", std::to_string(texts.size()),
                "1 to n_seqs, " + std::to_string(plan_.n_seqs));
  auto scoring = std::make_unique<Scoring::Impl>(*this, first);
  int64_t n_needed = 0;
  for (const std::vector<TokenId>& ids : texts) {
    check_ids(ids);
    const auto n = static_cast<int64_t>(ids.size());
    if (first < 0 || first >= n)
      throw Error(ErrorKind::usage, "first", "beyond the last position", std::to_string(first),
                  "0 to " + std::to_string(n - 1));
    n_needed += n;
  }
  const int64_t n_free = cache_.n_available() * kPageTokens;
  for (std::vector<TokenId>& ids : texts) {
    Scoring::Impl::Text& text = scoring->texts.emplace_back();
    text.ids = std::move(ids);
    if (!cache_.extend(text.pages, static_cast<int64_t>(text.ids.size())))
      throw Error(ErrorKind::does_not_fit, "logits", "requests in flight hold the pages",
                  std::to_string(n_free) + " positions free", std::to_string(n_needed) + " needed");
  }
  return scoring;
}

// As many tokens as a step takes, the first text's first. What limits them are tokens before `first` and rows of logits
// after it.
bool Engine::Impl::score_step(Scoring::Impl& scoring, const Scoring::RowCallback& on_row) {
  require_outside_step();
  scoring.step.clear();
  scoring.step_texts.clear();
  int64_t tokens_left = plan_.limits.max_tokens, outputs_left = plan_.limits.max_outputs;
  for (size_t i = 0; i < scoring.texts.size() && tokens_left > 0; ++i) {
    Scoring::Impl::Text& text = scoring.texts[i];
    const int64_t silent = std::max<int64_t>(0, scoring.first - text.n_computed);
    const int64_t count = std::min({text.left(), tokens_left, silent + outputs_left});
    if (count == 0) continue;
    const int64_t n_outputs = std::max<int64_t>(0, count - silent);
    const auto ids =
        std::span<const TokenId>(text.ids).subspan(static_cast<size_t>(text.n_computed), static_cast<size_t>(count));
    scoring.step.push_back({ids, text.n_computed, text.pages.pages, n_outputs});
    scoring.step_texts.push_back(i);
    text.n_computed += count;
    tokens_left -= count;
    outputs_left -= n_outputs;
  }
  if (scoring.step.empty()) return false;
  runner_.run(scoring.step);
  ++counters_.n_steps;
  counters_.n_tokens += plan_.limits.max_tokens - tokens_left;
  int64_t output = 0;
  for (size_t i = 0; i < scoring.step.size(); ++i) {
    const StepSequence& part = scoring.step[i];
    int64_t position = part.position + static_cast<int64_t>(part.ids.size()) - part.n_outputs;
    for (int64_t k = 0; k < part.n_outputs; ++k, ++position, ++output) {
      runner_.logits(output, row_);
      if (!all_finite(row_))
        throw Error(ErrorKind::run, "logits",
                    "not finite after position " + std::to_string(position) + "; it begins in " +
                        runner_.find_non_finite(part));
      on_row(scoring.step_texts[i], position, row_);
    }
  }
  return true;
}

Scoring::Scoring(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Scoring::Scoring(Scoring&&) noexcept = default;
Scoring::~Scoring() = default;
bool Scoring::step(const RowCallback& on_row) { return impl_->engine.score_step(*impl_, on_row); }

Scoring Engine::score(std::vector<std::vector<TokenId>> texts, int64_t first) {
  impl_->require_outside_step();
  return Scoring(impl_->score(std::move(texts), first));
}

void Engine::logits(std::span<const TokenId> ids, int64_t first,
                    const std::function<void(int64_t position, std::span<const float>)>& on_row) {
  const int64_t last = std::max<int64_t>(0, static_cast<int64_t>(ids.size()) - 1);
  std::vector<std::vector<TokenId>> texts = {{ids.begin(), ids.end()}};
  Scoring scoring = score(std::move(texts), first < 0 ? last : first);
  while (scoring.step([&](size_t, int64_t position, std::span<const float> row) { on_row(position, row); })) {
  }
}

}  // namespace infer
