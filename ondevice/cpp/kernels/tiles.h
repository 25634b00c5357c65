// Arranges a matrix in tiles of rows, in which a vector register holds one column of several rows.
#ifndef SEARCHFORGE_TILES_H_
#define SEARCHFORGE_TILES_H_

#include <cstddef>

#include "kernels/kernels.h"

namespace searchforge {

inline size_t TileCount(size_t rows) { return (rows + kTileRows - 1) / kTileRows; }

// Writes row number `row`, `values` [columns], of the matrix that `tiles` hold.
inline void WriteRow(const float* values, size_t row, size_t columns, float* tiles) {
  float* tile = tiles + row / kTileRows * columns * kTileRows + row % kTileRows;
  for (size_t column = 0; column < columns; ++column) tile[column * kTileRows] = values[column];
}

// Returns the number of columns whose products the Task Library (Eigen) sums before it adds them to a row's total.
inline size_t PanelColumns(size_t rows, size_t columns) {
  if (columns < 128) return columns;
  return rows < 8000 ? 16 : 4;
}

}  // namespace searchforge

#endif  // SEARCHFORGE_TILES_H_
