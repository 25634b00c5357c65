// The tokenizer that the metadata of a text encoder names.
#ifndef SEARCHFORGE_MODEL_TOKENIZER_H_
#define SEARCHFORGE_MODEL_TOKENIZER_H_

#include <memory>
#include <vector>

#include "model/source.h"
#include "base/status.h"
#include "text/tokenizer.h"
#include "model/zip_archive.h"

namespace searchforge {

// Makes the tokenizer of a model, with the vocabulary among its associated files. It is unsupported if the model has none, as an
// image encoder and a model that takes strings, or one that this library lacks.
Result<std::unique_ptr<Tokenizer>> ReadTokenizer(const Source& source, const std::vector<ArchivedFile>& files);

}  // namespace searchforge

#endif  // SEARCHFORGE_MODEL_TOKENIZER_H_
