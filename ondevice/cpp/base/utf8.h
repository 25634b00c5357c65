// Decodes UTF-8, well-formed or not.
#ifndef SEARCHFORGE_UTF8_H_
#define SEARCHFORGE_UTF8_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace searchforge {

struct Character {
  static constexpr uint32_t kInvalid = UINT32_MAX;

  uint32_t code;  // the code point, or kInvalid
  size_t length;  // bytes: of ill-formed text, as many as could begin a character (Unicode Standard, table 3-7), at least 1
};

// Returns the first character of a text that is not empty.
inline Character FirstCharacter(std::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xc2 || lead > 0xf4) return {Character::kInvalid, 1};
  const size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  uint32_t code = lead & (0x7f >> length);
  for (size_t i = 1; i < length; ++i) {
    // The second byte excludes overlong forms, surrogates and what is above U+10FFFF.
    const uint32_t lowest = i > 1 ? 0x80 : lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    const uint32_t highest = i > 1 ? 0xbf : lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (i == text.size() || byte(i) < lowest || byte(i) > highest) return {Character::kInvalid, i};
    code = code << 6 | (byte(i) & 0x3f);
  }
  return {code, length};
}

}  // namespace searchforge

#endif  // SEARCHFORGE_UTF8_H_
