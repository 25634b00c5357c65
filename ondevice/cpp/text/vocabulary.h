// A tokenizer's vocabulary: words and their ids, from the text file that lies inside a model.
#ifndef SEARCHFORGE_VOCABULARY_H_
#define SEARCHFORGE_VOCABULARY_H_

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"

namespace searchforge {

// An immutable hash table of byte strings. Of a word that the file has several times, the last id counts.
class Vocabulary {
 public:
  // Reads one word a line. Its id is the number of the lines before it that are not empty.
  static Result<Vocabulary> FromLines(Bytes file);

  // Reads one word and its id a line, separated by a blank.
  static Result<Vocabulary> FromNumberedLines(Bytes file);

  // Looks up a word. Returns false, and writes nothing, if it is not in the vocabulary.
  bool Find(std::string_view word, int32_t* id) const;

  // Finds the longest start of `text`, of whole characters, for which `prefix` followed by it is a word. Returns its length in
  // bytes, or 0 if there is none.
  size_t LongestStart(std::string_view prefix, std::string_view text, int32_t* id) const;

 private:
  struct Word {
    uint32_t offset, length;  // in text_
    int32_t id;
  };

  explicit Vocabulary(Bytes file) : text_(file.begin(), file.end()) {}

  // Calls `read_line` with every line that is not empty until it fails.
  template <typename ReadLine>
  static Result<Vocabulary> Read(Bytes file, ReadLine read_line);

  // Adds a word, a part of text_.
  void Add(std::string_view word, int32_t id);
  void BuildSlots();

  // Returns the slot of the word that consists of `prefix` and `rest` and has this hash, or the empty slot where it belongs.
  size_t Slot(uint64_t hash, std::string_view prefix, std::string_view rest) const;
  std::string_view text() const { return Bytes{text_.data(), text_.size()}.text(); }

  std::vector<uint8_t> text_;
  std::vector<Word> words_;
  std::vector<uint32_t> slots_;  // positions in words_, counted from 1; 0: empty. Their number is a power of 2
  size_t longest_ = 0;           // bytes of the longest word
};

}  // namespace searchforge

#endif  // SEARCHFORGE_VOCABULARY_H_
