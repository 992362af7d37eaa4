// The program infer: what belongs to a process; the rest is run_program().
#include <langinfo.h>

#include <clocale>
#include <cstring>

#include "tools/commands.h"
#include "tools/terminal.h"

namespace {

// Line editing and wide characters need UTF-8 even where nothing sets a locale, as in a bare container.
void choose_locale() {
  std::setlocale(LC_CTYPE, "");
  if (std::strcmp(nl_langinfo(CODESET), "UTF-8") != 0) std::setlocale(LC_CTYPE, "C.UTF-8");
}

}  // namespace

int main(int argc, char** argv) {
  using namespace infer::tools;
  choose_locale();
  install_interrupt_handler();
  const int status = run_program(Args(argv + 1, argv + argc));
  return interrupted() ? 130 : status;
}
