// SPDX-License-Identifier: GPL-2.0-only
// What the library was compiled from, for whoever looks at it as a file; see build.py.

#ifndef ACCELERATOR_STAMP
#error "compile this with build.py, which knows the stamp"
#endif

__attribute__((visibility("default"))) const char accelerator_stamp[] = ACCELERATOR_STAMP;
