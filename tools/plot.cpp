// The layout of plot.h: scales, ticks and points.
#include "tools/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tools/svg.h"

namespace infer::tools {
namespace {

constexpr double kWidth = 760, kHeight = 480, kLeft = 90, kRight = 30, kTop = 50, kBottom = 60;
constexpr double kRadius = 5, kLine = 14;  // of a point and of 12 px text
constexpr double kFloor = 1e-5;            // loss below which nobody can tell

class Drawing {
 public:
  explicit Drawing(const Plot& plot) : plot_(plot), svg_(kWidth, kHeight, plot.title) {
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
    svg_.text((kLeft + kWidth - kRight) / 2, 26, "middle", plot_.title, " font-size=\"15\"");
    axes();
    front();
    for (const PlotPoint& p : plot_.points) point(p);
    labels();
    return svg_.end();
  }

 private:
  double x(double v) const { return kLeft + v / x_end_ * (kWidth - kLeft - kRight); }
  double y(double v) const {
    const double at = std::log10(std::max(v, kFloor)) - first_decade_;
    return kHeight - kBottom - std::max(0.0, at) / (last_decade_ - first_decade_) * (kHeight - kTop - kBottom);
  }

  void axes() {
    const double bottom = kHeight - kBottom, right = kWidth - kRight;
    for (int i = 0; i * x_step_ <= x_end_ * 1.0001; ++i) {
      const double at = x(i * x_step_);
      svg_.line(at, kTop, at, bottom, "grid");
      svg_.text(at, bottom + 18, "middle", fmt::format("{:g}", i * x_step_));
    }
    for (int decade = first_decade_; decade <= last_decade_; ++decade) {
      const double value = std::pow(10.0, decade), at = y(value);
      svg_.line(kLeft, at, right, at, "grid");
      svg_.text(kLeft - 8, at + 4, "end", (value <= kFloor * 1.001 ? "\u2264 " : "") + fmt::format("{:g}", value));
    }
    svg_.line(kLeft, bottom, right, bottom, "axis");
    svg_.line(kLeft, kTop, kLeft, bottom, "axis");
    svg_.text((kLeft + right) / 2, kHeight - 16, "middle", plot_.x_title);
    const double middle = (kTop + bottom) / 2;
    svg_.text(20, middle, "middle", plot_.y_title, fmt::format(" transform=\"rotate(-90 20 {:.1f})\"", middle));
  }

  void front() {
    std::vector<const PlotPoint*> best;
    for (const PlotPoint& p : plot_.points)
      if (p.best) best.push_back(&p);
    if (best.size() < 2) return;
    std::sort(best.begin(), best.end(), [](auto* a, auto* b) { return a->x < b->x; });
    std::vector<std::pair<double, double>> places;
    for (const PlotPoint* p : best) places.emplace_back(x(p->x), y(p->y));
    svg_.polyline(places, "front");
  }

  void point(const PlotPoint& p) {
    if (p.y_error > 0) svg_.line(x(p.x), y(p.y - p.y_error), x(p.x), y(p.y + p.y_error), "error");
    svg_.circle(x(p.x), y(p.y), kRadius, p.best ? "point best" : "point",
                fmt::format("{}: {:.4g}, {:.4g}", p.label, p.x, p.y));
  }

  void labels() {
    Labels labels({kLeft, kTop - kLine, kWidth, kHeight - kBottom});
    for (const PlotPoint& p : plot_.points) labels.keep_free(x(p.x), y(p.y), kRadius);
    for (const PlotPoint& p : plot_.points) labels.put(svg_, x(p.x), y(p.y), kRadius, p.label);
  }

  const Plot& plot_;
  Svg svg_;
  double x_step_ = 1, x_end_ = 1;
  int first_decade_ = -5, last_decade_ = 0;
};

}  // namespace

std::string scatter_svg(const Plot& plot) { return Drawing(plot).svg(); }

}  // namespace infer::tools
