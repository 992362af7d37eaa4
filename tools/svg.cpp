// Elements, colours and labels of svg.h.
#include "tools/svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace infer::tools {
namespace {

constexpr double kLetter = 7.2, kLine = 14;  // of 12 px text

// Colours by what they are for; the second set where the reader's system is dark.
constexpr const char* kStyle =
    "<style>\n"
    "svg{background:#ffffff;font:12px sans-serif}\n"
    "text{fill:#24292f}\n.grid{stroke:#d0d7de;stroke-width:1}\n.axis{stroke:#57606a;stroke-width:1}\n"
    ".point{fill:#ffffff;stroke:#0969da;stroke-width:2}\n.best{fill:#0969da}\n"
    ".front{fill:none;stroke:#0969da;stroke-width:1.5;stroke-dasharray:4 3}\n.error{stroke:#0969da;stroke-width:1}\n"
    ".roof{fill:none;stroke:#57606a;stroke-width:2}\n"
    ".line0,.line1,.line2,.line3{fill:none;stroke-width:2}\n"
    ".line0{stroke:#0969da}\n.line1{stroke:#bc4c00}\n.line2{stroke:#1a7f37}\n.line3{stroke:#8250df}\n"
    ".fill0{fill:#0969da}\n.fill1{fill:#bc4c00}\n.fill2{fill:#1a7f37}\n.fill3{fill:#8250df}\n"
    "@media (prefers-color-scheme:dark){\n"
    "svg{background:#0d1117}\ntext{fill:#e6edf3}\n.grid{stroke:#30363d}\n.axis{stroke:#8b949e}\n"
    ".point{fill:#0d1117;stroke:#58a6ff}\n.best{fill:#58a6ff}\n.front,.error{stroke:#58a6ff}\n.roof{stroke:#8b949e}\n"
    ".line0{stroke:#58a6ff}\n.line1{stroke:#f0883e}\n.line2{stroke:#3fb950}\n.line3{stroke:#bc8cff}\n"
    ".fill0{fill:#58a6ff}\n.fill1{fill:#f0883e}\n.fill2{fill:#3fb950}\n.fill3{fill:#bc8cff}\n}\n"
    "</style>\n";

}  // namespace

std::string xml(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else
      out += c;
  }
  return out;
}

double round_step(double range, int n) {
  const double raw = range / n, power = std::pow(10.0, std::floor(std::log10(raw)));
  for (double factor : {1.0, 2.0, 5.0})
    if (raw <= factor * power) return factor * power;
  return 10 * power;
}

Svg::Svg(double width, double height, const std::string& title) {
  out_ = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:.0f} {:.0f}\" width=\"{:.0f}\" height=\"{:.0f}\" "
      "role=\"img\">\n<title>{}</title>\n",
      width, height, width, height, xml(title));
  out_ += kStyle;
}

void Svg::line(double x1, double y1, double x2, double y2, const char* kind) {
  out_ += fmt::format("<line class=\"{}\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>\n", kind, x1, y1,
                      x2, y2);
}

void Svg::text(double x, double y, const char* anchor, const std::string& words, const std::string& more) {
  out_ +=
      fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", x, y, anchor, more, xml(words));
}

void Svg::bar(double left, double top, double right, double bottom, const std::string& kind, const std::string& tip) {
  out_ += fmt::format(
      "<rect class=\"{}\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\"><title>{}</title></rect>\n",
      kind, left, top, std::max(0.0, right - left), bottom - top, xml(tip));
}

void Svg::circle(double x, double y, double radius, const std::string& kind, const std::string& tip) {
  out_ += fmt::format("<circle class=\"{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{:.0f}\"><title>{}</title></circle>\n",
                      kind, x, y, radius, xml(tip));
}

void Svg::polyline(const std::vector<std::pair<double, double>>& points, const std::string& kind) {
  std::string places;
  for (const auto& [x, y] : points) places += fmt::format("{}{:.1f},{:.1f}", places.empty() ? "" : " ", x, y);
  out_ += fmt::format("<polyline class=\"{}\" points=\"{}\"/>\n", kind, places);
}

void Labels::put(Svg& svg, double x, double y, double radius, const std::string& words) {
  const double width = kLetter * static_cast<double>(words.size()), away = radius + 3;
  std::vector<Box> places;
  for (double up : {0.0, 1.0, -1.0, 1.8, -1.8, 2.6, -2.6})
    for (int side : {1, -1, 0}) {
      if (side == 0 && std::abs(up) < 1) continue;  // on the point itself
      const double left = x + (side > 0 ? away : side < 0 ? -away - width : -width / 2);
      const double middle = y - up * kLine;
      places.push_back({left, middle - kLine / 2, left + width, middle + kLine / 2});
    }
  const auto fits = [&](const Box& box) {
    return box.left >= inside_.left && box.right <= inside_.right && box.top >= inside_.top &&
           box.bottom <= inside_.bottom &&
           std::none_of(taken_.begin(), taken_.end(), [&](const Box& other) { return box.overlaps(other); });
  };
  const auto found = std::find_if(places.begin(), places.end(), fits);
  const Box box = found == places.end() ? places.front() : *found;
  taken_.push_back(box);
  svg.text(box.left, (box.top + box.bottom) / 2 + 4, "start", words, " class=\"label\"");
}

}  // namespace infer::tools
