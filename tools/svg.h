// What the drawings of `infer bench --plot` have in common: plain SVG elements, colours that follow the reader's light
// or dark system, round steps for axes, and a place for every label. No fonts, scripts or files from elsewhere.
#pragma once

#include <string>
#include <vector>

namespace infer::tools {

/// Text with the characters that XML gives a meaning replaced.
std::string xml(const std::string& text);

/// 1, 2 or 5 times a power of ten, so that about `n` steps cover `range`.
double round_step(double range, int n);

struct Box {
  double left, top, right, bottom;
  bool overlaps(const Box& o) const { return left < o.right && o.left < right && top < o.bottom && o.top < bottom; }
};

/// A document under construction. Classes name what a thing is: "grid", "axis", "point", "best", "front", "error",
/// "line0" to "line3" (with "fill0" ...: what is filled in the same colour), "roof".
class Svg {
 public:
  Svg(double width, double height, const std::string& title);
  void line(double x1, double y1, double x2, double y2, const char* kind);
  void text(double x, double y, const char* anchor, const std::string& words, const std::string& more = "");
  void bar(double left, double top, double right, double bottom, const std::string& kind, const std::string& tip);
  void circle(double x, double y, double radius, const std::string& kind, const std::string& tip);
  void polyline(const std::vector<std::pair<double, double>>& points, const std::string& kind);
  std::string end() const { return out_ + "</svg>\n"; }

 private:
  std::string out_;
};

/// Places for labels beside points, nearest first, until one is inside and covers nothing taken; the first otherwise.
class Labels {
 public:
  explicit Labels(Box inside) : inside_(inside) {}
  void keep_free(double x, double y, double radius) {
    taken_.push_back({x - radius, y - radius, x + radius, y + radius});
  }
  void put(Svg& svg, double x, double y, double radius, const std::string& words);

 private:
  Box inside_;
  std::vector<Box> taken_;
};

}  // namespace infer::tools
