// Balls of pixels.
#pragma once
#include "segfuse.h"

namespace segfuse {
namespace {

// Pixels within `radius` of one of them, along 1 to 3 axes; counting stops above MAX_BALL.
inline int64_t ball(int radius, int dims) {
  int64_t points = 0;
  const int64_t r2 = int64_t(radius) * radius, ry = dims > 1 ? radius : 0, rz = dims > 2 ? radius : 0;
  for (int64_t z = -rz; z <= rz; ++z)
    for (int64_t y = -ry; y <= ry && points <= MAX_BALL; ++y) {
      const int64_t left = r2 - z * z - y * y;
      if (left < 0) continue;
      int64_t half = 0;
      while ((half + 1) * (half + 1) <= left) ++half;
      points += 2 * half + 1;
    }
  return points;
}

}  // namespace
}  // namespace segfuse
