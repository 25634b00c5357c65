// Sets of characters in regular expressions.
#ifndef SEARCHFORGE_CHARACTER_CLASS_H_
#define SEARCHFORGE_CHARACTER_CLASS_H_

#include <algorithm>
#include <cstdint>
#include <vector>

namespace searchforge {

constexpr uint32_t kLastCodePoint = 0x10ffff;

// Code points from `first` to `last`.
struct CodeRange {
  uint32_t first, last;
};

// Sorted ranges that do not touch.
using CharacterClass = std::vector<CodeRange>;

// What \d, \w and \s stand for in RE2.
inline CharacterClass Digits() { return {{'0', '9'}}; }
inline CharacterClass WordCharacters() { return {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}}; }
inline CharacterClass Blanks() { return {{'\t', '\n'}, {'\f', '\r'}, {' ', ' '}}; }

inline bool Contains(const CharacterClass& characters, uint32_t code) {
  const auto range = std::lower_bound(characters.begin(), characters.end(), code,
                                      [](const CodeRange& candidate, uint32_t value) { return candidate.last < value; });
  return range != characters.end() && code >= range->first;
}

// Returns the union of any ranges.
inline CharacterClass Merged(std::vector<CodeRange> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const CodeRange& a, const CodeRange& b) { return a.first < b.first; });
  CharacterClass merged;
  for (const CodeRange& range : ranges) {
    if (!merged.empty() && range.first <= merged.back().last + 1) {
      merged.back().last = std::max(merged.back().last, range.last);
    } else {
      merged.push_back(range);
    }
  }
  return merged;
}

// Returns all other code points.
inline CharacterClass Negated(const CharacterClass& characters) {
  CharacterClass others;
  uint32_t next = 0;
  for (const CodeRange& range : characters) {
    if (range.first > next) others.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  if (next <= kLastCodePoint) others.push_back({next, kLastCodePoint});
  return others;
}

}  // namespace searchforge

#endif  // SEARCHFORGE_CHARACTER_CLASS_H_
