// A searcher's TFLite file: its associated files, and which of them is the index.
#ifndef SEARCHFORGE_MODEL_FILE_H_
#define SEARCHFORGE_MODEL_FILE_H_

#include <string>
#include <vector>

#include "model/source.h"
#include "base/status.h"
#include "model/zip_archive.h"

namespace searchforge {

struct ModelFile {
  std::vector<ArchivedFile> files;  // the associated files without the index
  ArchivedFile index;  // where the LevelDB table of the index is
};

// Finds the index of a file that is a TFLite model with an associated file of the type SCANN_INDEX_FILE, or a LevelDB table.
Result<ModelFile> ReadModelFile(const Source& source);

}  // namespace searchforge

#endif  // SEARCHFORGE_MODEL_FILE_H_
