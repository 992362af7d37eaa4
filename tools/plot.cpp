// The layout of plot.h: scales, ticks, points, and a place for every label.
#include "tools/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace infer::tools {
namespace {

constexpr double kWidth = 760, kHeight = 480, kLeft = 90, kRight = 30, kTop = 50, kBottom = 60;
constexpr double kRadius = 5, kLetter = 7.2, kLine = 14;  // of a point and of 12 px text
constexpr double kFloor = 1e-5;                           // loss below which nobody can tell

// Colours by what they are for; the second set where the reader's system is dark.
constexpr const char* kStyle =
    "<style>\n"
    "svg{background:#ffffff;font:12px sans-serif}\n"
    "text{fill:#24292f}\n.grid{stroke:#d0d7de;stroke-width:1}\n.axis{stroke:#57606a;stroke-width:1}\n"
    ".point{fill:#ffffff;stroke:#0969da;stroke-width:2}\n.best{fill:#0969da}\n"
    ".front{fill:none;stroke:#0969da;stroke-width:1.5;stroke-dasharray:4 3}\n.error{stroke:#0969da;stroke-width:1}\n"
    "@media (prefers-color-scheme:dark){\n"
    "svg{background:#0d1117}\ntext{fill:#e6edf3}\n.grid{stroke:#30363d}\n.axis{stroke:#8b949e}\n"
    ".point{fill:#0d1117;stroke:#58a6ff}\n.best{fill:#58a6ff}\n.front,.error{stroke:#58a6ff}\n}\n"
    "</style>\n";

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

/// 1, 2 or 5 times a power of ten, so that about `n` steps cover `range`.
double round_step(double range, int n) {
  const double raw = range / n, power = std::pow(10.0, std::floor(std::log10(raw)));
  for (double factor : {1.0, 2.0, 5.0})
    if (raw <= factor * power) return factor * power;
  return 10 * power;
}

struct Box {
  double left, top, right, bottom;
  bool overlaps(const Box& o) const { return left < o.right && o.left < right && top < o.bottom && o.top < bottom; }
};

class Drawing {
 public:
  explicit Drawing(const Plot& plot) : plot_(plot) {
    double most_x = 0, most_y = 10 * kFloor, least_y = 1;
    for (const PlotPoint& p : plot.points) {
      most_x = std::max(most_x, p.x);
      most_y = std::max(most_y, p.y + p.y_error);
      least_y = std::min(least_y, std::max(p.y - p.y_error, kFloor));
    }
    x_step_ = round_step(std::max(most_x, 1e-9) * 1.05, 8);
    x_end_ = std::ceil(std::max(most_x, 1e-9) * 1.05 / x_step_) * x_step_;
    first_decade_ = static_cast<int>(std::floor(std::log10(least_y) + 1e-9));
    last_decade_ = std::max(first_decade_ + 1, static_cast<int>(std::ceil(std::log10(most_y) - 1e-9)));
  }

  std::string svg() {
    out_ = fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:.0f} {:.0f}\" width=\"{:.0f}\" height=\"{:.0f}\" "
        "role=\"img\">\n<title>{}</title>\n",
        kWidth, kHeight, kWidth, kHeight, xml(plot_.title));
    out_ += kStyle;
    text((kLeft + kWidth - kRight) / 2, 26, "middle", plot_.title, " font-size=\"15\"");
    axes();
    front();
    for (const PlotPoint& p : plot_.points) point(p);
    labels();
    return out_ + "</svg>\n";
  }

 private:
  double x(double v) const { return kLeft + v / x_end_ * (kWidth - kLeft - kRight); }
  double y(double v) const {
    const double at = std::log10(std::max(v, kFloor)) - first_decade_;
    return kHeight - kBottom - std::max(0.0, at) / (last_decade_ - first_decade_) * (kHeight - kTop - kBottom);
  }

  void line(double x1, double y1, double x2, double y2, const char* kind) {
    out_ += fmt::format("<line class=\"{}\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>\n", kind, x1, y1,
                        x2, y2);
  }
  void text(double at_x, double at_y, const char* anchor, const std::string& words, const std::string& more = "") {
    out_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", at_x, at_y, anchor, more,
                        xml(words));
  }

  void axes() {
    const double bottom = kHeight - kBottom, right = kWidth - kRight;
    for (int i = 0; i * x_step_ <= x_end_ * 1.0001; ++i) {
      const double at = x(i * x_step_);
      line(at, kTop, at, bottom, "grid");
      text(at, bottom + 18, "middle", fmt::format("{:g}", i * x_step_));
    }
    for (int decade = first_decade_; decade <= last_decade_; ++decade) {
      const double value = std::pow(10.0, decade), at = y(value);
      line(kLeft, at, right, at, "grid");
      text(kLeft - 8, at + 4, "end", (value <= kFloor * 1.001 ? "\u2264 " : "") + fmt::format("{:g}", value));
    }
    line(kLeft, bottom, right, bottom, "axis");
    line(kLeft, kTop, kLeft, bottom, "axis");
    text((kLeft + right) / 2, kHeight - 16, "middle", plot_.x_title);
    const double middle = (kTop + bottom) / 2;
    text(20, middle, "middle", plot_.y_title, fmt::format(" transform=\"rotate(-90 20 {:.1f})\"", middle));
  }

  void front() {
    std::vector<const PlotPoint*> best;
    for (const PlotPoint& p : plot_.points)
      if (p.best) best.push_back(&p);
    if (best.size() < 2) return;
    std::sort(best.begin(), best.end(), [](auto* a, auto* b) { return a->x < b->x; });
    std::string places;
    for (const PlotPoint* p : best)
      places += fmt::format("{}{:.1f},{:.1f}", places.empty() ? "" : " ", x(p->x), y(p->y));
    out_ += fmt::format("<polyline class=\"front\" points=\"{}\"/>\n", places);
  }

  void point(const PlotPoint& p) {
    if (p.y_error > 0) line(x(p.x), y(p.y - p.y_error), x(p.x), y(p.y + p.y_error), "error");
    out_ += fmt::format(
        "<circle class=\"point{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{:.0f}\"><title>{}: {:.4g}, "
        "{:.4g}</title></circle>\n",
        p.best ? " best" : "", x(p.x), y(p.y), kRadius, xml(p.label), p.x, p.y);
  }

  // Tries places around the point, nearest first, until one is inside and covers nothing; the first one otherwise.
  void labels() {
    std::vector<Box> taken;
    for (const PlotPoint& p : plot_.points)
      taken.push_back({x(p.x) - kRadius, y(p.y) - kRadius, x(p.x) + kRadius, y(p.y) + kRadius});
    const Box inside = {kLeft, kTop - kLine, kWidth, kHeight - kBottom};
    for (const PlotPoint& p : plot_.points) {
      const double width = kLetter * static_cast<double>(p.label.size()), away = kRadius + 3;
      std::vector<Box> places;
      for (double up : {0.0, 1.0, -1.0, 1.8, -1.8, 2.6, -2.6})
        for (int side : {1, -1, 0}) {
          if (side == 0 && std::abs(up) < 1) continue;  // on the point itself
          const double left = x(p.x) + (side > 0 ? away : side < 0 ? -away - width : -width / 2);
          const double middle = y(p.y) - up * kLine;
          places.push_back({left, middle - kLine / 2, left + width, middle + kLine / 2});
        }
      const auto fits = [&](const Box& box) {
        return box.left >= inside.left && box.right <= inside.right && box.top >= inside.top &&
               box.bottom <= inside.bottom &&
               std::none_of(taken.begin(), taken.end(), [&](const Box& other) { return box.overlaps(other); });
      };
      const auto found = std::find_if(places.begin(), places.end(), fits);
      const Box box = found == places.end() ? places.front() : *found;
      taken.push_back(box);
      text(box.left, (box.top + box.bottom) / 2 + 4, "start", p.label, " class=\"label\"");
    }
  }

  const Plot& plot_;
  double x_step_ = 1, x_end_ = 1;
  int first_decade_ = -5, last_decade_ = 0;
  std::string out_;
};

}  // namespace

std::string scatter_svg(const Plot& plot) { return Drawing(plot).svg(); }

}  // namespace infer::tools
