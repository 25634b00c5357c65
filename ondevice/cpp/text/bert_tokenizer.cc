// The Task Library's BertTokenizer. Of the usual steps of BERT it takes few: letters beyond ASCII keep their case, accents stay,
// and control characters are characters like any other.
#include <algorithm>
#include <array>
#include <iterator>
#include <string>
#include <utility>

#include "text/tokenizer.h"
#include "base/utf8.h"
#include "text/vocabulary.h"

namespace searchforge {
namespace {

struct CodePoints {
  uint32_t first, last;
};

constexpr CodePoints kDelimiters[] = {
#include "text/delimiters.inc"
};

constexpr size_t kMaxTokenBytes = 100;
constexpr std::string_view kSuffix = "##";  // begins the word pieces that do not begin a token

bool IsBlank(uint32_t code) { return code == ' ' || code == '\t' || code == '\n' || code == '\f' || code == '\r'; }

char LowerCase(char byte) { return byte >= 'A' && byte <= 'Z' ? static_cast<char>(byte + ('a' - 'A')) : byte; }

// Whether a character is a token of its own: punctuation, the symbols of ASCII, and Chinese characters.
bool IsDelimiter(uint32_t code) {
  if (code < 0x80) {
    return (code >= '!' && code <= '/') || (code >= ':' && code <= '@') || (code >= '[' && code <= '`') ||
           (code >= '{' && code <= '~');
  }
  const auto* range = std::lower_bound(std::begin(kDelimiters), std::end(kDelimiters), code,
                                       [](const CodePoints& points, uint32_t value) { return points.last < value; });
  return range != std::end(kDelimiters) && code >= range->first;
}

// Collects ids; those that do not fit are dropped.
class Ids {
 public:
  Ids(int32_t* first, size_t capacity) : first_(first), capacity_(capacity) {}

  size_t size() const { return size_; }
  bool full() const { return size_ == capacity_; }
  void Push(int32_t id) {
    if (!full()) first_[size_++] = id;
  }
  // Drops the ids behind the first `size`.
  void Resize(size_t size) { size_ = size; }

 private:
  int32_t* first_;
  size_t capacity_, size_ = 0;
};

class BertTokenizer : public Tokenizer {
 public:
  explicit BertTokenizer(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {
    // A special token that the vocabulary lacks has the id 0, as in the Task Library.
    vocabulary_.Find("[CLS]", &start_);
    vocabulary_.Find("[SEP]", &end_);
    vocabulary_.Find("[UNK]", &unknown_);
  }

  Result<size_t> Tokenize(std::string_view text, const TokenTensors& target) const override {
    if (target.length < 2) {
      return InvalidArgument("tensors of " + std::to_string(target.length) +
                             " tokens; expected at least 2, for the start and the end of the text");
    }
    Ids ids(target.ids, target.length - 1);
    ids.Push(start_);
    AddText(text.substr(0, text.find('\0')), &ids);
    const size_t used = ids.size() + 1;
    target.ids[used - 1] = end_;
    std::fill(target.ids + used, target.ids + target.length, 0);
    if (target.mask != nullptr) std::fill(std::fill_n(target.mask, used, 1), target.mask + target.length, 0);
    if (target.segment_ids != nullptr) std::fill_n(target.segment_ids, target.length, 0);
    return used;
  }

 private:
  // Splits a text into tokens at blanks and around delimiters.
  void AddText(std::string_view text, Ids* ids) const {
    size_t start = 0;
    for (size_t position = 0; position < text.size() && !ids->full();) {
      const Character character = FirstCharacter(text.substr(position));
      const bool delimiter = IsDelimiter(character.code);
      if (delimiter || IsBlank(character.code)) {
        AddToken(text.substr(start, position - start), ids);
        if (delimiter) AddToken(text.substr(position, character.length), ids);
        start = position + character.length;
      }
      position += character.length;
    }
    AddToken(text.substr(start), ids);
  }

  // Splits a token into the longest word pieces of the vocabulary, from left to right, or takes it as unknown.
  void AddToken(std::string_view token, Ids* ids) const {
    if (token.size() > kMaxTokenBytes) return ids->Push(unknown_);
    std::array<char, kMaxTokenBytes> lower;
    std::transform(token.begin(), token.end(), lower.begin(), LowerCase);
    const size_t before = ids->size();
    for (std::string_view rest(lower.data(), token.size()); !rest.empty();) {
      int32_t id;
      const size_t length = vocabulary_.LongestStart(rest.size() < token.size() ? kSuffix : "", rest, &id);
      if (length == 0) {
        ids->Resize(before);
        return ids->Push(unknown_);
      }
      ids->Push(id);
      rest.remove_prefix(length);
    }
  }

  Vocabulary vocabulary_;
  int32_t start_ = 0, end_ = 0, unknown_ = 0;
};

}  // namespace

Result<std::unique_ptr<Tokenizer>> NewBertTokenizer(Bytes vocabulary) {
  auto words = Vocabulary::FromLines(vocabulary);
  if (!words.ok()) return words.status();
  return std::unique_ptr<Tokenizer>(std::make_unique<BertTokenizer>(std::move(words.value())));
}

}  // namespace searchforge
