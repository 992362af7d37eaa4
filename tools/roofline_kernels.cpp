// The kernels of a roofline as Markdown and as records: what each asks of an SM, and what an SM has room for.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tools/roofline.h"

namespace infer::tools {
namespace {

using nlohmann::ordered_json;

/// What the kernels ask at most, and the occupancy of the worst of them.
struct Demand {
  int registers = 0;
  int64_t local_bytes = 0, shared_bytes = 0;
  double occupancy = 1;
};

Demand demand_of(const std::vector<KernelProfile>& kernels) {
  Demand out;
  for (const KernelProfile& k : kernels) {
    out.registers = std::max(out.registers, k.registers);
    out.local_bytes = std::max(out.local_bytes, k.local_bytes);
    out.shared_bytes = std::max(out.shared_bytes, k.shared_bytes);
    out.occupancy = std::min(out.occupancy, k.occupancy);
  }
  return out;
}

std::string kilo(int64_t bytes) { return fmt::format("{:.1f}", static_cast<double>(bytes) / 1024); }
std::string percent(double share) { return fmt::format("{:.0f} %", 100 * share); }

}  // namespace

std::array<std::string, 3> kernel_cells(const std::vector<KernelProfile>& kernels) {
  if (kernels.empty()) return {};
  const Demand d = demand_of(kernels);
  return {std::to_string(d.registers), kilo(d.shared_bytes), percent(d.occupancy)};
}

void add_kernels(const std::vector<KernelProfile>& kernels, ordered_json& j) {
  const Demand d = demand_of(kernels);
  for (const char* key : {"registers", "local_bytes", "shared_bytes", "occupancy"}) j[key] = nullptr;
  if (!kernels.empty())
    j.update({{"registers", d.registers},
              {"local_bytes", d.local_bytes},
              {"shared_bytes", d.shared_bytes},
              {"occupancy", d.occupancy}});
  ordered_json list = ordered_json::array();
  for (const KernelProfile& k : kernels)
    list.push_back({{"name", k.name},
                    {"launches_per_step", k.n_launches},
                    {"blocks", k.n_blocks},
                    {"threads", k.n_threads},
                    {"registers", k.registers},
                    {"local_bytes", k.local_bytes},
                    {"shared_bytes", k.shared_bytes},
                    {"blocks_per_sm", k.blocks_per_sm},
                    {"occupancy", k.occupancy}});
  j["kernels"] = list;
}

std::string kernels_text(const std::vector<RooflineRow>& rows) {
  std::vector<std::vector<std::string>> cells;
  for (const RooflineRow& row : rows)
    for (const KernelProfile& k : row.kernels)
      cells.push_back({row.name, k.name, std::to_string(k.n_launches), std::to_string(k.n_blocks),
                       std::to_string(k.n_threads), std::to_string(k.registers), std::to_string(k.local_bytes),
                       kilo(k.shared_bytes), std::to_string(k.blocks_per_sm), percent(k.occupancy)});
  if (cells.empty()) return {};
  return table_text({{"stage", 13, false},
                     {"kernel", 30, false},
                     {"launches", 8, true},
                     {"blocks", 6, true},
                     {"threads", 7, true},
                     {"regs", 4, true},
                     {"local B", 7, true},
                     {"smem KB", 7, true},
                     {"blocks/SM", 9, true},
                     {"occupancy", 9, true}},
                    cells) +
         "\nlaunches in one step; regs and local B of a thread (local: what registers had no room for), smem of a "
         "block;\noccupancy: threads that an SM has room for at once, of those it could hold\n\n";
}

}  // namespace infer::tools
