# The Debian packages: moefuse, libmoefuse0, libmoefuse-dev.  `make deb` builds them under build/deb.
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME moefuse)
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_PACKAGE_CONTACT "moefuse developers <moefuse@example.org>" CACHE STRING "Maintainer field of the packages")
set(CPACK_COMPONENTS_ALL program library development)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_GROUPING IGNORE)
# With DESTDIR, what goes to /etc goes into the package and not onto this machine.
set(CPACK_SET_DESTDIR ON)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)

set(CPACK_DEBIAN_PROGRAM_PACKAGE_NAME moefuse)
set(CPACK_COMPONENT_PROGRAM_DESCRIPTION "server for mixture-of-experts language models
Runs mixture-of-experts models from Hugging Face checkpoints with the whole
MoE layer fused, from the command line or as an OpenAI-compatible server
with a chat page and Prometheus metrics.  Holds a small model to try it with.")
set(CPACK_DEBIAN_PROGRAM_PACKAGE_CONTROL_EXTRA
  "${CMAKE_BINARY_DIR}/debian/conffiles;${CMAKE_BINARY_DIR}/debian/postinst;${CMAKE_BINARY_DIR}/debian/prerm;${CMAKE_BINARY_DIR}/debian/postrm")

set(CPACK_DEBIAN_LIBRARY_PACKAGE_NAME libmoefuse0)
set(CPACK_DEBIAN_LIBRARY_PACKAGE_SECTION libs)
# CPack's own shlibs come with scripts that call ldconfig, where Debian has a trigger.
set(CPACK_DEBIAN_LIBRARY_PACKAGE_CONTROL_EXTRA "${CMAKE_BINARY_DIR}/debian/shlibs;${CMAKE_BINARY_DIR}/debian/triggers")
set(CPACK_COMPONENT_LIBRARY_DESCRIPTION "fused mixture-of-experts operations, shared library
The MoE layer's operations (fused gate, grouped experts product over routed
and shared experts, sum-reduce) and an inference engine behind a C interface.")

set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_NAME libmoefuse-dev)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_DEPENDS "libmoefuse0 (= ${PROJECT_VERSION})")
set(CPACK_COMPONENT_DEVELOPMENT_DESCRIPTION "fused mixture-of-experts operations, development files
The MoE layer's operations (fused gate, grouped experts product over routed
and shared experts, sum-reduce) and an inference engine behind a C interface:
headers and the pkg-config file.")

# What Debian wants of every package; made where the packages are made only.
if(CMAKE_INSTALL_PREFIX STREQUAL "/usr")
  file(WRITE ${CMAKE_BINARY_DIR}/debian/conffiles "/etc/moefuse/moefuse.env\n")
  file(WRITE ${CMAKE_BINARY_DIR}/debian/shlibs "libmoefuse 0 libmoefuse0 (>= ${PROJECT_VERSION})\n")
  file(WRITE ${CMAKE_BINARY_DIR}/debian/triggers "activate-noawait ldconfig\n")
  foreach(script postinst prerm postrm)
    configure_file(packaging/debian/${script} ${CMAKE_BINARY_DIR}/debian/${script} COPYONLY)
  endforeach()
  string(TIMESTAMP now "%a, %d %b %Y %H:%M:%S +0000" UTC) # SOURCE_DATE_EPOCH is honoured
  file(WRITE ${CMAKE_BINARY_DIR}/debian/changelog "moefuse (${PROJECT_VERSION}) unstable; urgency=medium

  * Version ${PROJECT_VERSION}; CHANGELOG.md says what is in it.

 -- ${CPACK_PACKAGE_CONTACT}  ${now}
")
  foreach(pair program=moefuse library=libmoefuse0 development=libmoefuse-dev)
    string(REPLACE "=" ";" pair ${pair})
    list(GET pair 0 component)
    list(GET pair 1 package)
    install(FILES packaging/debian/copyright DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/${package} COMPONENT ${component})
    install(CODE "execute_process(COMMAND gzip -9nkf \"${CMAKE_BINARY_DIR}/debian/changelog\" COMMAND_ERROR_IS_FATAL ANY)"
      COMPONENT ${component})
    install(FILES ${CMAKE_BINARY_DIR}/debian/changelog.gz DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/${package}
      COMPONENT ${component})
    if(EXISTS ${CMAKE_SOURCE_DIR}/packaging/debian/${package}.lintian-overrides)
      install(FILES packaging/debian/${package}.lintian-overrides DESTINATION ${CMAKE_INSTALL_DATADIR}/lintian/overrides
        RENAME ${package} COMPONENT ${component})
    endif()
  endforeach()
endif()
include(CPack)
