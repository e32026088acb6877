# Finds swiftc: BATCHNORM_SWIFTC.
find_program(BATCHNORM_SWIFTC swiftc HINTS /opt/swift/usr/bin /usr/share/swift/usr/bin)
if(NOT BATCHNORM_SWIFTC)
  message(FATAL_ERROR "swiftc is missing: put Swift 6.2 or newer (https://swift.org/install) on PATH")
endif()
execute_process(COMMAND "${BATCHNORM_SWIFTC}" --version
  OUTPUT_VARIABLE swift_version ERROR_VARIABLE swift_version_error)
string(REGEX MATCH "Swift version ([0-9]+\\.[0-9]+(\\.[0-9]+)?)" _ "${swift_version}")
set(BATCHNORM_SWIFT_VERSION "${CMAKE_MATCH_1}")
if(BATCHNORM_SWIFT_VERSION VERSION_LESS 6.2)
  message(FATAL_ERROR "${BATCHNORM_SWIFTC} is Swift '${BATCHNORM_SWIFT_VERSION}', expected 6.2 or "
    "newer (https://swift.org/install)\n${swift_version}${swift_version_error}")
endif()
