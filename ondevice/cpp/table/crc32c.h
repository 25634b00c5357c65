// CRC-32C (Castagnoli), the checksum of LevelDB's blocks.
#ifndef SEARCHFORGE_CRC32C_H_
#define SEARCHFORGE_CRC32C_H_

#include <cstdint>

#include "base/bytes.h"

namespace searchforge {

uint32_t Crc32c(Bytes bytes);

// Returns a checksum as LevelDB stores it: masked, because checksums of data that contain checksums are weak.
inline uint32_t MaskedCrc32c(Bytes bytes) {
  const uint32_t crc = Crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

}  // namespace searchforge

#endif  // SEARCHFORGE_CRC32C_H_
