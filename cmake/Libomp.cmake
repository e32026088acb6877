# Finds libomp: BATCHNORM_LIBOMP.
# Debian keeps it among LLVM's own folders, which CMake's FindOpenMP does not search.
file(GLOB llvm_folders LIST_DIRECTORIES true /usr/lib/llvm-*/lib)
list(SORT llvm_folders COMPARE NATURAL ORDER DESCENDING)
find_library(BATCHNORM_LIBOMP NAMES omp omp5 iomp5 HINTS ${llvm_folders})
if(NOT BATCHNORM_LIBOMP)
  message(FATAL_ERROR "libomp is missing. Install it (Debian, Ubuntu: apt-get install libomp-dev), "
    "or pass -DBATCHNORM_LIBOMP=/path/to/libomp.so")
endif()
