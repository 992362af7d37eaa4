// `infer logits`: raw float32 logits of a token sequence, for comparing with other programs.
#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "tools/common.h"

namespace infer::tools {

int logits_command(const Args& args) {
  ModelFlags model_flags;
  EngineFlags engine_flags;
  std::string ids_text, out;
  bool all = false;
  Arguments a("infer logits -m MODEL --ids 1,2,3 -o OUT.f32 [--all]",
              "Writes little-endian float32 [positions, vocab]: the last position, or all.\n");
  model_flags.add_to(a);
  engine_flags.add_to(a);
  a.text({"--ids"}, "1,2,3", "token ids", &ids_text);
  a.text({"-o", "--output"}, "FILE", "where to write", &out);
  a.flag({"--all"}, "logits of all positions", &all);
  if (!parse_or_help(a, args)) return 0;
  const std::vector<TokenId> ids = parse_ids("--ids", ids_text);
  if (ids.empty()) throw Error(ErrorKind::usage, "--ids", "no ids given");
  if (out.empty()) throw Error(ErrorKind::usage, "-o", "no output file given");
  const Model model = model_flags.open();
  if (engine_flags.n_ctx == 0)
    engine_flags.n_ctx = std::min<int64_t>(static_cast<int64_t>(ids.size()), model.info().context_length);
  Engine engine(model, engine_flags.options(model_flags));
  announce_device(model, engine, model_flags.load);
  const auto close = [](std::FILE* f) { std::fclose(f); };
  std::unique_ptr<std::FILE, decltype(close)> file(std::fopen(out.c_str(), "wb"), close);
  if (!file) throw Error(ErrorKind::run, escaped(out), std::strerror(errno));
  bool written = true;
  engine.logits(ids, all ? 0 : -1, [&](int64_t, std::span<const float> row) {
    written = written && std::fwrite(row.data(), sizeof(float), row.size(), file.get()) == row.size();
  });
  written = std::fflush(file.get()) == 0 && written;
  if (!written) throw Error(ErrorKind::run, escaped(out), std::strerror(errno));
  return 0;
}

}  // namespace infer::tools
