// Resizes images to the input of an encoder, bit by bit as the batch pipeline does (Pillow).
#ifndef SEARCHFORGE_RESIZE_H_
#define SEARCHFORGE_RESIZE_H_

#include <cstddef>
#include <cstdint>

#include "image/preprocessing.h"
#include "base/status.h"

namespace searchforge {

// Decoded pixels that somebody else owns: rows of red, green and blue bytes, from top to bottom.
struct Image {
  const uint8_t* pixels;
  uint32_t width, height;
  size_t stride;  // bytes from the start of a row to the start of the next
};

// Stretches an image to the preprocessing's size. `target` is [height, width, 3].
Status Resize(const Image& image, const Preprocessing& preprocessing, uint8_t* target);

}  // namespace searchforge

#endif  // SEARCHFORGE_RESIZE_H_
