// The ZIP archive behind a model (https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT): associated files, stored
// without compression.
#ifndef SEARCHFORGE_ZIP_ARCHIVE_H_
#define SEARCHFORGE_ZIP_ARCHIVE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "model/source.h"
#include "base/status.h"

namespace searchforge {

// A file in an archive: its name, and where its bytes lie in the source.
struct ArchivedFile {
  std::string name;
  uint64_t offset = 0;
  uint64_t size = 0;
};

// Returns the files of the archive at the end of a source, in their order; none if the source does not end with an archive.
Result<std::vector<ArchivedFile>> ReadArchive(const Source& source);

}  // namespace searchforge

#endif  // SEARCHFORGE_ZIP_ARCHIVE_H_
