// The C interface of the tokenizers.
#include <memory>
#include <utility>

#include "c_error.h"
#include "searchforge_reader.h"
#include "tokenizer.h"

struct sf_tokenizer {
  std::unique_ptr<searchforge::Tokenizer> tokenizer;
};

namespace {

using searchforge::Bytes;
using searchforge::Guarded;
using searchforge::Status;

}  // namespace

sf_status sf_open_bert_tokenizer(const void* vocabulary, size_t size, sf_tokenizer** tokenizer) {
  return Guarded([=]() -> Status {
    auto opened = std::make_unique<sf_tokenizer>();
    SF_ASSIGN_OR_RETURN(opened->tokenizer, searchforge::NewBertTokenizer(Bytes{static_cast<const uint8_t*>(vocabulary), size}));
    *tokenizer = opened.release();
    return {};
  });
}

void sf_close_tokenizer(sf_tokenizer* tokenizer) { delete tokenizer; }

sf_status sf_tokenize(const sf_tokenizer* tokenizer, const char* text, size_t size, size_t length, int32_t* ids, int32_t* mask,
                      int32_t* segment_ids, size_t* used) {
  return Guarded([=]() -> Status {
    SF_ASSIGN_OR_RETURN(*used, tokenizer->tokenizer->Tokenize({text, size}, {length, ids, mask, segment_ids}));
    return {};
  });
}
