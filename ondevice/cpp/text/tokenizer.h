// Tokenizers: from a text to the input tensors of a text encoder, as the Task Library fills them.
#ifndef SEARCHFORGE_TOKENIZER_H_
#define SEARCHFORGE_TOKENIZER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "base/bytes.h"
#include "base/status.h"

namespace searchforge {

// Input tensors, [length] each. `mask` and `segment_ids` may be null.
struct TokenTensors {
  size_t length;
  int32_t* ids;
  int32_t* mask;         // 1 for a token of the text, 0 for padding
  int32_t* segment_ids;  // 0 everywhere: a text is one segment
};

// Immutable: may be used from several threads at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Fills the tensors; what does not fit is cut off. A text may be any bytes. Returns how many tokens it has in the
  // tensors: those behind are padding.
  virtual Result<size_t> Tokenize(std::string_view text, const TokenTensors& target) const = 0;
};

// Returns the BertTokenizer of a vocabulary with one word a line: [CLS], the word pieces of the lower-cased text, [SEP], padding.
// A text ends at its first zero byte, if it has any.
Result<std::unique_ptr<Tokenizer>> NewBertTokenizer(Bytes vocabulary);

// Returns the RegexTokenizer of a regular expression, which matches what is between tokens, and a vocabulary with a word and its id
// a line: <START> if the vocabulary has it, the tokens of the text, <PAD>.
Result<std::unique_ptr<Tokenizer>> NewRegexTokenizer(std::string_view pattern, Bytes vocabulary);

}  // namespace searchforge

#endif  // SEARCHFORGE_TOKENIZER_H_
