// The public Engine: options and requests are checked here, and the loops around step() are here. The step itself is in
// step.cpp, logits of whole texts in scoring.cpp.
#include <algorithm>
#include <new>
#include <random>

#include "runtime/crossovers.h"
#include "runtime/engine_impl.h"

namespace infer {
namespace {

uint64_t random_key() {
  std::random_device random;
  return uint64_t{random()} << 32 | random();
}

/// As the model was loaded with, but for what the engine has of its own.
BackendOptions backend_options(const Model::Impl& model, const EngineOptions& engine) {
  BackendOptions o = model.backend_options;
  o.n_threads = engine.n_threads;
  if (!engine.isa.empty()) o.isa = engine.isa;
  if (!engine.mode.empty()) o.mode = engine.mode;
  if (!engine.act.empty()) o.act = engine.act;
  o.debug_sync = o.debug_sync || engine.debug_sync;
  o.fusion = o.fusion && engine.fusion;
  if (!engine.crossovers.empty()) o.crossovers = checked_crossovers(engine.crossovers);
  o.unfused.insert(o.unfused.end(), engine.unfused.begin(), engine.unfused.end());
  return o;
}

}  // namespace

std::unique_ptr<Backend> make_engine_backend(const Model::Impl& model, const EngineOptions& options) {
  return make_backend(model.device, backend_options(model, options));
}

Engine::Impl::Prepared Engine::Impl::prepare(const Model::Impl& model, const EngineOptions& options,
                                             std::unique_ptr<Backend> backend) {
  if (model.vocab_only)
    throw Error(ErrorKind::usage, escaped(model.info.path), "a model loaded for its vocabulary only makes no engine");
  Prepared out;
  Needs needs = model.needs;
  needs.deterministic = needs.deterministic || options.deterministic;
  out.backend = std::move(backend);
  if (!out.backend) out.backend = make_engine_backend(model, options);
  const size_t available = memory_for_engine(*out.backend, model.info.mapped_bytes);
  out.plan = plan_engine(model.config, model.device, options, available, needs);
  out.backend->prepare(needs);
  return out;
}

Engine::Impl::Impl(const Model& model, const EngineOptions& options, std::unique_ptr<Backend> backend)
    : Impl(model, prepare(model.impl(), options, std::move(backend))) {}

Engine::Impl::Impl(const Model& model, Prepared prepared)
    : model_(model),
      shared_(model_.impl()),
      backend_(std::move(prepared.backend)),
      plan_(prepared.plan),
      // Rows of logits beyond the list of tokens are padding: they have no text and are never drawn.
      runner_(shared_.config, shared_.weights, *backend_, plan_.limits,
              shared_.tokenizer ? shared_.tokenizer->n_tokens() : shared_.config.vocab),
      cache_(plan_.limits.n_pages, random_key()) {
  limits_.max_tokens = plan_.limits.max_tokens;
  limits_.max_running = plan_.n_seqs;
  limits_.page_tokens = kPageTokens;
  limits_.chunk_beside_decodes = std::max<int64_t>(kPageTokens, plan_.limits.max_tokens / 4);
  counters_.device_free_bytes = backend_->memory_left().value_or(0);
  row_.resize(static_cast<size_t>(shared_.config.vocab));
  views_.reserve(static_cast<size_t>(plan_.n_seqs));
  step_.reserve(static_cast<size_t>(plan_.n_seqs));
  pages_ahead_.reserve(static_cast<size_t>(plan_.n_seqs));
  for (Flight* flight : {&flight_, &ahead_, &taken_}) flight->reserve(static_cast<size_t>(plan_.n_seqs));
  not_finite_.reserve(static_cast<size_t>(plan_.n_seqs));
  schedule_.work.reserve(static_cast<size_t>(plan_.n_seqs));
  ended_.reserve(static_cast<size_t>(plan_.n_seqs));
}

Engine::Impl::~Impl() { drop_flights(); }

RequestId Engine::Impl::submit(const Request& request, TokenCallback on_token, DoneCallback on_done) {
  std::vector<TokenId> ids = request.ids;
  if (ids.empty()) ids = shared_.require_tokenizer().encode(request.prompt, true, true);
  check(request, ids);
  Request kept = request;
  kept.ids.clear();
  kept.prompt.clear();
  sequences_.push_back(std::make_unique<Sequence>(next_id_, std::move(kept), std::move(ids),
                                                  shared_.tokenizer ? &*shared_.tokenizer : nullptr, plan_.limits.n_ctx,
                                                  std::move(on_token), std::move(on_done)));
  auto& draw = sequences_.back()->draw;
  if (draw && !backend_->samples(*draw)) draw.reset();
  return next_id_++;
}

void Engine::Impl::check(const Request& request, std::span<const TokenId> ids) const {
  auto require = [](bool good, const char* field, int64_t found, const std::string& allowed) {
    if (!good) throw Error(ErrorKind::usage, field, "out of range", std::to_string(found), allowed);
  };
  const int64_t vocab = shared_.config.vocab;
  validate(request.sampling);
  for (const auto& [id, bias] : request.sampling.logit_bias)
    require(id < vocab, "logit_bias", id, "token ids below " + std::to_string(vocab));
  for (TokenId id : request.stop_ids)
    require(id >= 0 && id < vocab, "stop_ids", id, "token ids below " + std::to_string(vocab));
  require(request.max_tokens >= -1, "max_tokens", request.max_tokens, "integers >= -1 (-1: no limit)");
  require(request.n_top_logprobs >= 0 && request.n_top_logprobs <= 1000, "n_top_logprobs", request.n_top_logprobs,
          "0 to 1000");
  check_ids(ids);
}

void Engine::Impl::check_ids(std::span<const TokenId> ids) const {
  if (ids.empty()) throw Error(ErrorKind::usage, "prompt", "no tokens", "0", "at least 1");
  if (static_cast<int64_t>(ids.size()) > plan_.limits.n_ctx)
    throw Error(ErrorKind::usage, "prompt", "longer than the context", std::to_string(ids.size()) + " tokens",
                "at most " + std::to_string(plan_.limits.n_ctx));
  for (TokenId id : ids)
    if (id < 0 || id >= shared_.config.vocab)
      throw Error(ErrorKind::usage, "prompt", "unknown token id", std::to_string(id),
                  "0 to " + std::to_string(shared_.config.vocab - 1));
}

void Engine::Impl::cancel(RequestId id) {
  const std::lock_guard lock(cancel_mutex_);
  to_cancel_.push_back(id);
}

bool Engine::Impl::in_flight(RequestId id) const {
  return std::any_of(sequences_.begin(), sequences_.end(), [&](const auto& s) { return s->id == id; });
}

void Engine::Impl::abandon(RequestId id) {
  if (!in_flight(id)) return;
  drop_flights();
  std::erase_if(sequences_, [&](auto& sequence) {
    if (sequence->id != id) return false;
    cache_.release(sequence->pages, {});
    return true;
  });
}

EngineStats Engine::Impl::stats() const {
  EngineStats stats = counters_;
  const BackendStats backend = backend_->stats();
  stats.n_running = std::count_if(sequences_.begin(), sequences_.end(), [](auto& s) { return s->running; });
  stats.n_waiting = static_cast<int64_t>(sequences_.size()) - stats.n_running;
  stats.n_ctx = plan_.limits.n_ctx;
  stats.n_pages = cache_.n_pages();
  stats.n_free_pages = cache_.n_free();
  stats.n_cached_pages = cache_.n_cached();
  stats.kv_bytes = runner_.kv_bytes();
  stats.kv_bytes_per_token = plan_.kv_bytes_per_token;
  stats.scratch_bytes = static_cast<size_t>(backend.bytes) - stats.kv_bytes;
  stats.n_allocations = backend.allocations;
  stats.n_parallel_regions = backend.stages;
  stats.n_launches = backend.launches;
  stats.n_captures = backend.captures;
  stats.n_syncs = backend.syncs;
  stats.n_threads = backend_->n_threads();
  stats.backend = backend_->describe();
  stats.cache_note = plan_.cache_note;
  return stats;
}

std::vector<Crossover> Engine::Impl::crossovers() const { return public_crossovers(backend_->crossovers()); }

Engine::Engine(const Model& model, const EngineOptions& options) {
  try {
    impl_ = std::make_unique<Impl>(model, options);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorKind::does_not_fit, "engine", "out of memory");
  }
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;

RequestId Engine::submit(const Request& request, TokenCallback on_token, DoneCallback on_done) {
  return impl_->submit(request, std::move(on_token), std::move(on_done));
}

bool Engine::step() { return impl_->step(); }
void Engine::cancel(RequestId id) { impl_->cancel(id); }

Result Engine::generate(const Request& request, TokenCallback on_token) {
  impl_->require_outside_step();
  Result out;
  const RequestId id = impl_->submit(request, std::move(on_token), [&out](const Result& result) { out = result; });
  struct Guard {  // an exception must not leave a request behind that refers to `out`
    Impl& impl;
    RequestId id;
    ~Guard() { impl.abandon(id); }
  } guard{*impl_, id};
  while (impl_->in_flight(id)) impl_->step();
  return out;
}

void Engine::clear_cache() { impl_->clear_cache(); }
EngineStats Engine::stats() const { return impl_->stats(); }
std::vector<Crossover> Engine::crossovers() const { return impl_->crossovers(); }

}  // namespace infer
