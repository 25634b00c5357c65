// Reads vocabularies and looks words up, with FNV-1a hashes, which extend from a word to a longer one byte by byte.
#include "text/vocabulary.h"

#include <algorithm>
#include <string>

#include "base/utf8.h"

namespace searchforge {
namespace {

constexpr uint64_t kNoBytes = 0xcbf29ce484222325;  // the hash of the empty string

uint64_t Hash(uint64_t start, std::string_view bytes) {
  for (const char byte : bytes) start = (start ^ static_cast<uint8_t>(byte)) * 0x100000001b3;
  return start;
}

// Reads a decimal number as std::stoi does: behind white space, with a sign, up to the first byte that is no digit.
bool ReadNumber(std::string_view text, int32_t* number) {
  const size_t start = std::min(text.find_first_not_of(" \t\n\v\f\r"), text.size());
  size_t position = start;
  const bool negative = position < text.size() && text[position] == '-';
  if (position < text.size() && (text[position] == '-' || text[position] == '+')) ++position;
  const size_t digits = position;
  int64_t value = 0;
  for (; position < text.size() && text[position] >= '0' && text[position] <= '9'; ++position) {
    value = 10 * value + (text[position] - '0');
    if (value > int64_t{INT32_MAX} + negative) return false;
  }
  *number = static_cast<int32_t>(negative ? -value : value);
  return position > digits;
}

}  // namespace

template <typename ReadLine>
Result<Vocabulary> Vocabulary::Read(Bytes file, ReadLine read_line) {
  if (file.size >= INT32_MAX) {
    return Unsupported("the vocabulary has " + std::to_string(file.size) + " bytes; expected less than 2 GB");
  }
  Vocabulary vocabulary(file);
  const std::string_view text = vocabulary.text();
  for (size_t start = 0; start < text.size();) {
    const size_t end = std::min(text.find('\n', start), text.size());
    if (end > start) SF_RETURN_IF_ERROR(read_line(&vocabulary, text.substr(start, end - start)));
    start = end + 1;
  }
  vocabulary.BuildSlots();
  return vocabulary;
}

Result<Vocabulary> Vocabulary::FromLines(Bytes file) {
  return Read(file, [](Vocabulary* vocabulary, std::string_view line) {
    vocabulary->Add(line, static_cast<int32_t>(vocabulary->words_.size()));
    return Status();
  });
}

Result<Vocabulary> Vocabulary::FromNumberedLines(Bytes file) {
  return Read(file, [](Vocabulary* vocabulary, std::string_view line) {
    const size_t blank = line.find(' ');
    int32_t id;
    if (blank == std::string_view::npos ||
        !ReadNumber(line.substr(blank + 1, line.find(' ', blank + 1) - blank - 1), &id)) {
      return Damaged("line " + std::to_string(vocabulary->words_.size() + 1) +
                     " of the vocabulary (empty lines not counted) is not a word, a blank and a number; export the encoder again");
    }
    vocabulary->Add(line.substr(0, blank), id);
    return Status();
  });
}

void Vocabulary::Add(std::string_view word, int32_t id) {
  words_.push_back({static_cast<uint32_t>(word.data() - text().data()), static_cast<uint32_t>(word.size()), id});
  longest_ = std::max(longest_, word.size());
}

void Vocabulary::BuildSlots() {
  size_t slots = 2;
  while (slots < 2 * words_.size()) slots *= 2;
  slots_.assign(slots, 0);
  for (size_t i = 0; i < words_.size(); ++i) {
    const std::string_view word = text().substr(words_[i].offset, words_[i].length);
    slots_[Slot(Hash(kNoBytes, word), {}, word)] = static_cast<uint32_t>(i + 1);
  }
}

size_t Vocabulary::Slot(uint64_t hash, std::string_view prefix, std::string_view rest) const {
  const size_t last = slots_.size() - 1;
  for (size_t slot = (hash ^ hash >> 32) & last;; slot = (slot + 1) & last) {
    if (slots_[slot] == 0) return slot;
    const Word& found = words_[slots_[slot] - 1];
    if (found.length != prefix.size() + rest.size()) continue;
    const std::string_view word = text().substr(found.offset, found.length);
    if (word.substr(0, prefix.size()) == prefix && word.substr(prefix.size()) == rest) return slot;
  }
}

bool Vocabulary::Find(std::string_view word, int32_t* id) const {
  const uint32_t found = slots_[Slot(Hash(kNoBytes, word), {}, word)];
  if (found > 0) *id = words_[found - 1].id;
  return found > 0;
}

size_t Vocabulary::LongestStart(std::string_view prefix, std::string_view text, int32_t* id) const {
  size_t longest = 0;
  uint64_t hash = Hash(kNoBytes, prefix);
  for (size_t end = 0; end < text.size() && prefix.size() + end < longest_;) {
    const size_t length = FirstCharacter(text.substr(end)).length;
    hash = Hash(hash, text.substr(end, length));
    end += length;
    const uint32_t found = slots_[Slot(hash, prefix, text.substr(0, end))];
    if (found == 0) continue;
    longest = end;
    *id = words_[found - 1].id;
  }
  return longest;
}

}  // namespace searchforge
