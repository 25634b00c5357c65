// What the handles of the C interface stand for.
#ifndef SEARCHFORGE_C_HANDLES_H_
#define SEARCHFORGE_C_HANDLES_H_

#include <memory>

#include "index/index.h"
#include "text/tokenizer.h"

struct sf_index {
  std::unique_ptr<searchforge::Index> index;
};

struct sf_tokenizer {
  std::unique_ptr<searchforge::Tokenizer> tokenizer;
};

#endif  // SEARCHFORGE_C_HANDLES_H_
