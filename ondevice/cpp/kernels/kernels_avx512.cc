// Kernels for x86-64 processors with AVX-512 VBMI, which looks up 64 bytes in a table of 128 with one instruction.
#if defined(__x86_64__)

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC's own headers: gcc.gnu.org/bugzilla 105593
#endif

#include <immintrin.h>

#include "kernels/kernels.h"
#include "kernels/kernels_generic.h"

#define SF_AVX512 __attribute__((target("avx2,avx512f,avx512bw,avx512vbmi")))

namespace searchforge {
namespace {

// Largest number of blocks whose bytes add up within 16 bits.
constexpr size_t kMaxBlocks = 256;

SF_AVX512 void Distances(const float* tiles, size_t tile_count, size_t columns, size_t panel, const float* query,
                         float* distances) {
  GenericDistances<Registers32>(tiles, tile_count, columns, panel, query, distances);
}

SF_AVX512 void Range(const float* numbers, float* low, float* high) { GenericRange<Registers32>(numbers, low, high); }

SF_AVX512 void Levels(float* numbers, float low, float scale) { GenericLevels(numbers, low, scale); }

SF_AVX512 void ToBytes(const float* numbers, float low, float scale, uint8_t* bytes) {
  GenericBytes(numbers, low, scale, bytes);
}

// Transposes a matrix of 8 x 8 words of 8 bytes.
SF_AVX512 inline void TransposeWords(__m512i rows[8]) {
  __m512i pairs[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm512_unpacklo_epi64(rows[i], rows[i + 1]);      // words 0, 2, 4 and 6 of two rows
    pairs[i + 1] = _mm512_unpackhi_epi64(rows[i], rows[i + 1]);  // words 1, 3, 5 and 7
  }
  for (int odd = 0; odd < 2; ++odd) {
    const __m512i *a = pairs + odd, *b = a + 2, *c = a + 4, *d = a + 6;
    const __m512i ab = _mm512_shuffle_i64x2(*a, *b, 0x88), cd = _mm512_shuffle_i64x2(*c, *d, 0x88);
    const __m512i ab2 = _mm512_shuffle_i64x2(*a, *b, 0xdd), cd2 = _mm512_shuffle_i64x2(*c, *d, 0xdd);
    rows[odd] = _mm512_shuffle_i64x2(ab, cd, 0x88);
    rows[odd + 2] = _mm512_shuffle_i64x2(ab2, cd2, 0x88);
    rows[odd + 4] = _mm512_shuffle_i64x2(ab, cd, 0xdd);
    rows[odd + 6] = _mm512_shuffle_i64x2(ab2, cd2, 0xdd);
  }
}

// Writes the bytes of 64 blocks, of which `width` exist, of up to 64 codes to `columns`: for each word of 8 blocks and each
// group of 8 codes, 8 bytes of each block in turn.
SF_AVX512 inline void GatherColumns(const uint8_t* codes, size_t count, size_t blocks, size_t width, __m512i columns[8][8]) {
  alignas(64) static constexpr uint8_t kTransposeBytes[64] = {
      0, 8,  16, 24, 32, 40, 48, 56, 1, 9,  17, 25, 33, 41, 49, 57, 2, 10, 18, 26, 34, 42, 50, 58, 3, 11, 19, 27, 35, 43, 51, 59,
      4, 12, 20, 28, 36, 44, 52, 60, 5, 13, 21, 29, 37, 45, 53, 61, 6, 14, 22, 30, 38, 46, 54, 62, 7, 15, 23, 31, 39, 47, 55, 63};
  const __m512i transpose = _mm512_load_si512(kTransposeBytes);
  const __mmask64 mask = width >= 64 ? ~__mmask64{0} : (__mmask64{1} << width) - 1;
  for (size_t group = 0; group * 8 < count; ++group) {
    __m512i rows[8];
    for (size_t i = 0; i < 8; ++i) {
      const size_t item = group * 8 + i < count ? group * 8 + i : count - 1;
      rows[i] = _mm512_maskz_loadu_epi8(mask, codes + item * blocks);
    }
    TransposeWords(rows);
    for (size_t word = 0; word < 8; ++word) columns[word][group] = _mm512_permutexvar_epi8(transpose, rows[word]);
  }
}

// Returns the entries [256] that 64 bytes select.
SF_AVX512 inline __m512i LookUp(const uint8_t* entries, __m512i codes) {
  const __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(entries), codes, _mm512_loadu_si512(entries + 64));
  const __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(entries + 128), codes, _mm512_loadu_si512(entries + 192));
  return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
}

SF_AVX512 void Sums(const uint8_t* codes, size_t count, size_t blocks, const uint8_t* entries, uint32_t* sums) {
  if (blocks > kMaxBlocks) return GenericSums(codes, count, blocks, entries, sums);
  __m512i even = _mm512_setzero_si512(), odd = even;  // sums of every second code, 16 bits each
  __m512i columns[8][8] = {};
  const __m512i bytes = _mm512_set1_epi16(0xff);
  for (size_t start = 0; start < blocks; start += 64) {
    const size_t width = blocks - start;
    GatherColumns(codes + start, count, blocks, width, columns);
    for (size_t word = 0; word < 8 && word * 8 < width; ++word) {
      TransposeWords(columns[word]);
      const size_t present = width - word * 8 < 8 ? width - word * 8 : 8;
      for (size_t i = 0; i < present; ++i, entries += 256) {
        const __m512i found = LookUp(entries, columns[word][i]);
        even = _mm512_add_epi16(even, _mm512_and_si512(found, bytes));
        odd = _mm512_add_epi16(odd, _mm512_srli_epi16(found, 8));
      }
    }
  }
  alignas(64) uint16_t halves[2][32];
  _mm512_store_si512(halves[0], even);
  _mm512_store_si512(halves[1], odd);
  for (size_t item = 0; item < count; ++item) sums[item] = halves[item % 2][item / 2];
}

}  // namespace

const Kernels kAvx512Kernels = {"avx512", Distances, Range, Levels, ToBytes, Sums};

}  // namespace searchforge

#endif  // __x86_64__
