// The layouts of charts.h.
#include "tools/charts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tools/svg.h"

namespace infer::tools {
namespace {

constexpr double kWidth = 760, kHeight = 480, kLeft = 90, kRight = 30, kTop = 70, kBottom = 60;
constexpr double kRadius = 5;

/// Numbers to places along an axis, linear or logarithmic.
struct Scale {
  double least, most, from, to;
  bool log = false;
  double at(double v) const {
    const double part =
        log ? std::log(std::max(v, least) / least) / std::log(most / least) : (v - least) / (most - least);
    return from + part * (to - from);
  }
};

double decade_below(double v) { return std::pow(10.0, std::floor(std::log10(v) + 1e-9)); }
double decade_above(double v) { return std::pow(10.0, std::ceil(std::log10(v) - 1e-9)); }

/// A scale of whole decades around the values; those that are not above 0 do not count.
Scale decades(const std::vector<double>& values, double from, double to) {
  double least = 0, most = 0;
  for (const double v : values) {
    if (v <= 0) continue;
    least = least == 0 ? v : std::min(least, v);
    most = std::max(most, v);
  }
  if (most == 0) least = most = 1;
  Scale scale{decade_below(least), decade_above(most), from, to, true};
  if (scale.most <= scale.least) scale.most = 10 * scale.least;
  return scale;
}

std::string colour(const char* kind, size_t i) { return kind + std::to_string(std::min<size_t>(i, 3)); }

/// Names of the series, one after another below the title.
void legend(Svg& svg, const std::vector<std::string>& names) {
  double x = kLeft;
  for (size_t i = 0; i < names.size(); ++i) {
    svg.bar(x, 40, x + 12, 52, colour("fill", i), names[i]);
    svg.text(x + 18, 51, "start", names[i]);
    x += 42 + 7.2 * static_cast<double>(names[i].size());
  }
}

void title(Svg& svg, const std::string& words) { svg.text(kWidth / 2, 26, "middle", words, " font-size=\"15\""); }

void frame(Svg& svg, const std::string& x_title, const std::string& y_title) {
  const double bottom = kHeight - kBottom, right = kWidth - kRight, middle = (kTop + bottom) / 2;
  svg.line(kLeft, bottom, right, bottom, "axis");
  svg.line(kLeft, kTop, kLeft, bottom, "axis");
  svg.text((kLeft + right) / 2, kHeight - 16, "middle", x_title);
  svg.text(20, middle, "middle", y_title, fmt::format(" transform=\"rotate(-90 20 {:.1f})\"", middle));
}

void x_tick(Svg& svg, double at, const std::string& words) {
  svg.line(at, kTop, at, kHeight - kBottom, "grid");
  svg.text(at, kHeight - kBottom + 18, "middle", words);
}

void y_tick(Svg& svg, double at, const std::string& words) {
  svg.line(kLeft, at, kWidth - kRight, at, "grid");
  svg.text(kLeft - 8, at + 4, "end", words);
}

/// A power of ten in full.
std::string decade(double v) { return v < 1 ? fmt::format("{:g}", v) : fmt::format("{:.0f}", v); }

std::string short_number(double v) {
  return v >= 100 ? fmt::format("{:.0f}", v) : v >= 10 ? fmt::format("{:.1f}", v) : fmt::format("{:.2f}", v);
}

/// A line below both roofs from the left edge, over the ridge, to the right edge.
void roofs(Svg& svg, const RooflineChart& chart, const Scale& x, const Scale& y) {
  const double ridge = chart.peak_gops / chart.bandwidth_gbps;
  const auto roof = [&](double intensity) { return std::min(chart.peak_gops, intensity * chart.bandwidth_gbps); };
  std::vector<std::pair<double, double>> line;
  const double begin = std::max(x.least, y.least / chart.bandwidth_gbps);  // where the slope enters the picture
  for (const double intensity : {begin, std::clamp(ridge, begin, x.most), x.most})
    line.emplace_back(x.at(intensity), y.at(roof(intensity)));
  svg.polyline(line, "roof");
  svg.text(x.to - 6, y.at(roof(x.most)) - 8, "end",
           fmt::format("{} peak, {:.0f} GFLOP/s", chart.peak_name, chart.peak_gops));
  // Along the slope, past its middle: what generates lies near its foot, prompts near the ridge.
  const auto [x0, y0] = line[0];
  const auto [x1, y1] = line[1];
  const double at_x = x0 + 0.6 * (x1 - x0), at_y = y0 + 0.6 * (y1 - y0) - 8;
  svg.text(at_x, at_y, "middle",
           fmt::format("{:.{}f} GB/s read", chart.bandwidth_gbps, chart.bandwidth_gbps < 20 ? 1 : 0),
           fmt::format(" transform=\"rotate({:.1f} {:.1f} {:.1f})\"", std::atan2(y1 - y0, x1 - x0) * 180 / M_PI, at_x,
                       at_y));
}

}  // namespace

std::string bars_svg(const BarChart& chart) {
  constexpr double kLabels = 250, kValues = 60, kBar = 11, kSpace = 12;
  const double row_height = kBar * static_cast<double>(std::max<size_t>(1, chart.series.size())) + kSpace;
  const double bottom = kTop + row_height * static_cast<double>(chart.rows.size()), right = kWidth - kValues;
  Svg svg(kWidth, bottom + 60, chart.title);
  title(svg, chart.title);
  legend(svg, chart.series);
  std::vector<double> all;
  for (const BarChart::Row& row : chart.rows) all.insert(all.end(), row.values.begin(), row.values.end());
  const Scale x = decades(all, kLabels, right);
  for (double v = x.least; v <= x.most * 1.001; v *= 10) {
    svg.line(x.at(v), kTop, x.at(v), bottom, "grid");
    svg.text(x.at(v), bottom + 18, "middle", decade(v));
  }
  double y = kTop + kSpace / 2;
  for (const BarChart::Row& row : chart.rows) {
    svg.text(kLabels - 8, y + (row_height - kSpace) / 2 + 4, "end", row.label);
    for (size_t i = 0; i < row.values.size(); ++i, y += kBar) {
      if (row.values[i] <= 0) continue;
      const double end = x.at(row.values[i]);
      svg.bar(kLabels, y, end, y + kBar - 1, colour("fill", i), fmt::format("{}: {:.4g}", row.label, row.values[i]));
      svg.text(end + 4, y + kBar - 1, "start", short_number(row.values[i]), " font-size=\"11\"");
    }
    y += kSpace;
  }
  svg.line(kLabels, kTop, kLabels, bottom, "axis");
  svg.text((kLabels + right) / 2, bottom + 44, "middle", chart.x_title);
  return svg.end();
}

std::string roofline_svg(const RooflineChart& chart) {
  Svg svg(kWidth, kHeight, chart.title);
  title(svg, chart.title);
  legend(svg, {"generation", "prompt"});
  const bool limits = chart.bandwidth_gbps > 0 && chart.peak_gops > 0;
  std::vector<double> xs, ys;
  for (const RooflineChart::Point& p : chart.points) xs.push_back(p.flops_per_byte), ys.push_back(p.gops);
  if (limits) xs.push_back(2 * chart.peak_gops / chart.bandwidth_gbps), ys.push_back(chart.peak_gops * 1.2);
  const Scale x = decades(xs, kLeft, kWidth - kRight), y = decades(ys, kHeight - kBottom, kTop);
  for (double v = x.least; v <= x.most * 1.001; v *= 10) x_tick(svg, x.at(v), decade(v));
  for (double v = y.least; v <= y.most * 1.001; v *= 10) y_tick(svg, y.at(v), decade(v));
  frame(svg, "operations per byte", "GFLOP/s");
  if (limits) roofs(svg, chart, x, y);
  Labels labels({kLeft, kTop, kWidth, kHeight - kBottom});
  const auto radius = [](const RooflineChart::Point& p) { return 3 + 9 * std::sqrt(std::clamp(p.share, 0.0, 1.0)); };
  for (const RooflineChart::Point& p : chart.points) {
    svg.circle(x.at(p.flops_per_byte), y.at(p.gops), radius(p), colour("fill", p.generation ? 0 : 1),
               fmt::format("{}: {:.3g} operations/byte, {:.4g} GFLOP/s, {:.0f} % of the time", p.label,
                           p.flops_per_byte, p.gops, 100 * p.share));
    labels.keep_free(x.at(p.flops_per_byte), y.at(p.gops), radius(p));
  }
  for (const RooflineChart::Point& p : chart.points)
    labels.put(svg, x.at(p.flops_per_byte), y.at(p.gops), radius(p), p.label);
  return svg.end();
}

std::string curves_svg(const CurveChart& chart) {
  Svg svg(kWidth, kHeight, chart.title);
  title(svg, chart.title);
  double least_x = 0, most_x = 0, most_y = 0;
  std::vector<std::string> names;
  std::vector<double> places;
  for (const CurveChart::Line& line : chart.lines) {
    names.push_back(line.name);
    for (const auto& [x, y] : line.points) {
      if (places.empty() || x < least_x) least_x = x;
      most_x = std::max(most_x, x), most_y = std::max(most_y, y);
      places.push_back(x);
    }
  }
  if (chart.log_x && least_x <= 0) least_x = 1;
  if (most_x <= least_x) most_x = chart.log_x ? 2 * least_x : least_x + 1;
  const double step = round_step(std::max(most_y, 1e-9) * 1.08, 6);
  const Scale x{chart.log_x ? least_x : 0, most_x, kLeft + 20, kWidth - kRight - 30, chart.log_x};
  const Scale y{0, std::ceil(std::max(most_y, 1e-9) * 1.08 / step) * step, kHeight - kBottom, kTop};
  legend(svg, names);
  std::sort(places.begin(), places.end());
  double free_from = 0;  // ticks stand where there are points, unless they would cover one another
  for (const double v : places) {
    if (x.at(v) < free_from) continue;
    x_tick(svg, x.at(v), fmt::format("{:g}", v));
    free_from = x.at(v) + 40;
  }
  for (int i = 0; i * step <= y.most * 1.0001; ++i) y_tick(svg, y.at(i * step), fmt::format("{:g}", i * step));
  frame(svg, chart.x_title, chart.y_title);
  Labels labels({kLeft, kTop - 14, kWidth, kHeight - kBottom});
  for (size_t i = 0; i < chart.lines.size(); ++i) {
    std::vector<std::pair<double, double>> at;
    for (const auto& [px, py] : chart.lines[i].points) at.emplace_back(x.at(px), y.at(py));
    svg.polyline(at, colour("line", i));
    for (const auto& [px, py] : chart.lines[i].points) {
      svg.circle(x.at(px), y.at(py), kRadius, colour("fill", i), fmt::format("{}: {:g}, {:.4g}", names[i], px, py));
      labels.keep_free(x.at(px), y.at(py), kRadius);
    }
  }
  for (const CurveChart::Line& line : chart.lines)
    for (const auto& [px, py] : line.points)  // above the line that leads to the point
      labels.put(svg, x.at(px) - 4, y.at(py) - 11, kRadius, short_number(py));
  return svg.end();
}

std::string batch_curve_svg(const std::string& model, const std::vector<CurveChart::Line>& lines) {
  CurveChart chart;
  chart.title = model + ": tokens/s over sequences at once";
  chart.x_title = "sequences", chart.y_title = "tokens/s, all together";
  chart.log_x = true;
  chart.lines = lines;
  return curves_svg(chart);
}

}  // namespace infer::tools
