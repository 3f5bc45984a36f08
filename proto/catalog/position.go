package catalog

// Position is the number of an event in the log of its owner. Every log numbers its events from 1, in the order in
// which they were committed. A new incarnation of the log leaves out some numbers. 0 stands for the beginning of a log,
// before its first event.
type Position int64

// Version is the number of an event in its stream: 1, 2, 3 and so on. The version of a stream is the number of its
// newest event, or 0 if the stream does not exist.
type Version int64
