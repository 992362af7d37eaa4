// The forms of table.h.
#include "tools/table.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "infer/error.h"

namespace infer::tools {
namespace {

using nlohmann::ordered_json;

size_t display_width(const std::string& s) {
  size_t n = 0;
  for (char c : s) n += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return n;
}

void add_cell(std::string& line, const std::string& text, size_t width, bool right) {
  const std::string space(width - std::min(width, display_width(text)), ' ');
  line += ' ';
  line += right ? space : text;
  line += right ? text : space;
  line += " |";
}

// Quoted as llama-bench quotes.
std::string csv_line(const ordered_json& record, bool keys) {
  std::string out;
  for (const auto& [key, value] : record.items()) {
    if (value.is_array()) continue;
    if (!out.empty()) out += ',';
    if (keys) {
      out += key;
      continue;
    }
    out += '"';
    for (char c : value.is_string() ? value.get<std::string>() : value.dump()) {
      if (c == '"') out += '"';
      out += c;
    }
    out += '"';
  }
  return out + '\n';
}

}  // namespace

std::string table_head(const std::vector<TableColumn>& columns) {
  std::string head = "|", rule = "|";
  for (const TableColumn& c : columns) {
    add_cell(head, c.title, c.width, c.right);
    std::string dashes(c.width, '-');
    if (c.right) dashes.back() = ':';
    add_cell(rule, dashes, c.width, false);
  }
  return head + '\n' + rule + '\n';
}

std::string table_row(const std::vector<TableColumn>& columns, const std::vector<std::string>& cells) {
  std::string line = "|";
  for (size_t i = 0; i < columns.size(); ++i) add_cell(line, cells[i], columns[i].width, columns[i].right);
  return line + '\n';
}

std::string table_text(std::vector<TableColumn> columns, const std::vector<std::vector<std::string>>& rows) {
  std::string lines;
  for (size_t i = 0; i < columns.size(); ++i) {
    columns[i].width = std::max(columns[i].width, display_width(columns[i].title));
    for (const auto& cells : rows) columns[i].width = std::max(columns[i].width, display_width(cells[i]));
  }
  for (const auto& cells : rows) lines += table_row(columns, cells);
  return table_head(columns) + lines;
}

RecordText::RecordText(const std::string& form) : form_(form) {
  if (form != "md" && form != "csv" && form != "json" && form != "jsonl")
    throw Error(ErrorKind::usage, "-o", "unknown form", "'" + escaped(form) + "'", "md, csv, json, jsonl");
}

std::string RecordText::add(const ordered_json& record) {
  const bool first = n_records_++ == 0;
  if (form_ == "csv") return (first ? csv_line(record, true) : "") + csv_line(record, false);
  if (form_ == "jsonl") return record.dump() + '\n';
  std::string indented = first ? "[\n  " : ",\n  ";
  for (char c : record.dump(2)) {
    indented += c;
    if (c == '\n') indented += "  ";
  }
  return indented;
}

std::string RecordText::end() const {
  if (form_ != "json") return "";
  return n_records_ ? "\n]\n" : "[]\n";
}

}  // namespace infer::tools
