// Pictures of the speed of a machine, as SVG (svg.h): bars of a ladder, a roofline, and curves over a batch or a depth.
#pragma once

#include <string>
#include <vector>

namespace infer::tools {

/// A bar for each series of each row, on one logarithmic scale.
struct BarChart {
  std::string title, x_title;
  std::vector<std::string> series;  ///< at most 4
  struct Row {
    std::string label;
    std::vector<double> values;  ///< one per series; 0: none
  };
  std::vector<Row> rows;
};
std::string bars_svg(const BarChart& chart);

/// Speed against operations per byte, both logarithmic, below the roofs of memory and arithmetic.
struct RooflineChart {
  std::string title, peak_name;
  double bandwidth_gbps = 0, peak_gops = 0;
  struct Point {
    std::string label;
    double flops_per_byte = 0, gops = 0;
    double share = 0;  ///< of its phase's time: the area of the point
    bool generation = false;
  };
  std::vector<Point> points;
};
std::string roofline_svg(const RooflineChart& chart);

/// Lines through points in the order given; every point is labelled with its value.
struct CurveChart {
  std::string title, x_title, y_title;
  bool log_x = false;  ///< steps of two, for batches
  struct Line {
    std::string name;
    std::vector<std::pair<double, double>> points;  ///< x > 0 where log_x
  };
  std::vector<Line> lines;  ///< at most 4 have colours of their own
};
std::string curves_svg(const CurveChart& chart);
/// Tokens/s over the number of sequences, for the batch sweep; one line for prompts and one for generation, or others.
std::string batch_curve_svg(const std::string& model, const std::vector<CurveChart::Line>& lines);

}  // namespace infer::tools
