// CRC-32C with the processor's instruction where there is one, and with eight tables elsewhere.
#include "table/crc32c.h"

#include <array>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

namespace searchforge {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78u;  // reflected

using Tables = std::array<std::array<uint32_t, 256>, 8>;

// Table t holds the checksum of a byte that t zero bytes follow.
constexpr Tables MakeTables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? kPolynomial : 0);
    tables[0][byte] = crc;
  }
  for (size_t t = 1; t < 8; ++t) {
    for (size_t byte = 0; byte < 256; ++byte) {
      tables[t][byte] = (tables[t - 1][byte] >> 8) ^ tables[0][tables[t - 1][byte] & 255];
    }
  }
  return tables;
}

constexpr Tables kTables = MakeTables();

uint32_t ExtendByTables(uint32_t crc, const uint8_t* data, size_t size) {
  for (; size >= 8; data += 8, size -= 8) {
    const uint64_t word = Load<uint64_t>(data) ^ crc;
    crc = 0;
    for (unsigned byte = 0; byte < 8; ++byte) crc ^= kTables[7 - byte][(word >> (8 * byte)) & 255];
  }
  for (; size > 0; ++data, --size) crc = (crc >> 8) ^ kTables[0][(crc ^ *data) & 255];
  return crc;
}

#if defined(__x86_64__)

__attribute__((target("sse4.2,crc32"))) uint32_t ExtendByInstruction(uint32_t crc, const uint8_t* data, size_t size) {
  uint64_t wide = crc;
  for (; size >= 8; data += 8, size -= 8) wide = _mm_crc32_u64(wide, Load<uint64_t>(data));
  uint32_t narrow = static_cast<uint32_t>(wide);
  for (; size > 0; ++data, --size) narrow = _mm_crc32_u8(narrow, *data);
  return narrow;
}

bool HasInstruction() { return __builtin_cpu_supports("sse4.2"); }

#elif defined(__ARM_FEATURE_CRC32)

uint32_t ExtendByInstruction(uint32_t crc, const uint8_t* data, size_t size) {
  for (; size >= 8; data += 8, size -= 8) crc = __crc32cd(crc, Load<uint64_t>(data));
  for (; size > 0; ++data, --size) crc = __crc32cb(crc, *data);
  return crc;
}

bool HasInstruction() { return true; }

#else

uint32_t ExtendByInstruction(uint32_t crc, const uint8_t*, size_t) { return crc; }

bool HasInstruction() { return false; }

#endif

}  // namespace

uint32_t Crc32c(Bytes bytes) {
  static const bool instruction = HasInstruction();
  return ~(instruction ? ExtendByInstruction(~0u, bytes.data, bytes.size) : ExtendByTables(~0u, bytes.data, bytes.size));
}

}  // namespace searchforge
