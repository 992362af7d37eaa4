// A scatter plot with a logarithmic loss axis as plain SVG, legible on light and dark backgrounds. No fonts, scripts or
// files from elsewhere.
#pragma once

#include <string>
#include <vector>

namespace infer::tools {

struct PlotPoint {
  std::string label;
  double x = 0;        ///< >= 0
  double y = 0;        ///< >= 0; below 1e-5 it is drawn there
  double y_error = 0;  ///< standard error, drawn as a bar; 0: none
  bool best = false;   ///< filled, and joined by a line with the others of its kind
};

struct Plot {
  std::string title, x_title, y_title;
  std::vector<PlotPoint> points;
};

/// An SVG document. Labels are moved aside where they would cover one another.
std::string scatter_svg(const Plot& plot);

}  // namespace infer::tools
