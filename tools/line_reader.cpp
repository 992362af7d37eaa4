// Line editing; see line_reader.h. The prompt goes to stderr: stdout carries answers only.
#include "tools/line_reader.h"

#include <histedit.h>
#include <unistd.h>

#include <cstdio>

#include "tools/terminal.h"

namespace infer::tools {

struct LineReader::Editor {
  EditLine* line = nullptr;
  History* history = nullptr;
  HistEvent event = {};
  std::string prompt;
};

LineReader::LineReader() {
  if (!is_terminal(0) || !is_terminal(2)) return;
  editor_ = std::make_unique<Editor>();
  editor_->history = history_init();
  history(editor_->history, &editor_->event, H_SETSIZE, 1000);
  history(editor_->history, &editor_->event, H_SETUNIQUE, 1);
  editor_->line = el_init("infer", stdin, stderr, stderr);
  el_set(editor_->line, EL_CLIENTDATA, editor_.get());
  el_set(
      editor_->line, EL_PROMPT, +[](EditLine* line) -> char* {
        void* self = nullptr;
        el_get(line, EL_CLIENTDATA, &self);
        return static_cast<Editor*>(self)->prompt.data();
      });
  el_set(editor_->line, EL_EDITOR, "emacs");
  el_set(editor_->line, EL_HIST, history, editor_->history);
  el_source(editor_->line, nullptr);  // the user's ~/.editrc
}

LineReader::~LineReader() {
  if (!editor_) return;
  el_end(editor_->line);
  history_end(editor_->history);
}

std::optional<std::string> LineReader::read_line(const char* prompt) {
  if (!editor_) {
    std::string line;
    int c;
    while ((c = std::fgetc(stdin)) != EOF && c != '\n') line += static_cast<char>(c);
    if (c == EOF && line.empty()) return std::nullopt;
    return line;
  }
  editor_->prompt = prompt;
  int count = 0;
  const char* text = el_gets(editor_->line, &count);
  if (!text || count <= 0) {
    std::fputc('\n', stderr);
    return std::nullopt;
  }
  std::string line(text, static_cast<size_t>(count));
  while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.pop_back();
  if (!line.empty()) history(editor_->history, &editor_->event, H_ENTER, line.c_str());
  return line;
}

std::optional<std::string> LineReader::read_message() {
  std::optional<std::string> line = read_line("> ");
  if (!line) return line;
  std::string message;
  if (line->rfind("\"\"\"", 0) == 0) {
    message = line->substr(3);
    const auto closed = [&] { return message.size() >= 3 && message.compare(message.size() - 3, 3, "\"\"\"") == 0; };
    while (!closed()) {
      line = read_line(". ");
      if (!line) return line;
      if (!message.empty()) message += '\n';
      message += *line;
    }
    message.resize(message.size() - 3);
    if (!message.empty() && message.back() == '\n') message.pop_back();
    return message;
  }
  while (!line->empty() && line->back() == '\\') {
    message += line->substr(0, line->size() - 1) + '\n';
    line = read_line(". ");
    if (!line) return line;
  }
  return message + *line;
}

}  // namespace infer::tools
