// Where the bytes of a file are: in the page cache or on a disk, and how quickly they come from either. Changes nothing
// but what is cached. Knows nothing of formats.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace infer::tools {

/// The files that a model at `path` consists of: itself, the other parts of a split GGUF file, or the weights of a
/// folder.
std::vector<std::string> model_files(const std::string& path);

/// Share of the file's pages that are in memory; nothing where the system does not tell.
std::optional<double> cached_share(const std::string& path);

/// Asks the system to forget what it holds of the file. It may not: pages that a process has mapped, file systems in
/// memory.
void drop_from_cache(const std::string& path);
/// Reads the file, so that it is in memory if there is room.
void read_into_cache(const std::string& path);

/// GB/s of reading pages that are in memory, with one thread.
double measure_page_cache(double seconds = 0.2);
/// GB/s of reading the file past the page cache; nothing where its file system cannot do that. Reads at most 1 GB.
std::optional<double> measure_disk(const std::string& path, double seconds = 1);

}  // namespace infer::tools
