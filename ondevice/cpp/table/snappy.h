// Decompresses Snappy's raw format (https://github.com/google/snappy/blob/main/format_description.txt).
#ifndef SEARCHFORGE_SNAPPY_H_
#define SEARCHFORGE_SNAPPY_H_

#include <vector>

#include "base/bytes.h"
#include "base/status.h"

namespace searchforge {

// Returns the decompressed bytes, which lie in `buffer`. The buffer grows to at most 64 times the compressed bytes: an
// element writes no more than 64 bytes for each of its own.
Result<Bytes> SnappyDecompress(Bytes compressed, std::vector<uint8_t>& buffer);

}  // namespace searchforge

#endif  // SEARCHFORGE_SNAPPY_H_
