package catalog

// Position is the number of an event in the log of its owner. Every log numbers its events from 1, in the order in which
// they were committed. 0 stands for the beginning of a log, before its first event.
type Position int64

// Version is the number of an event in its stream, from 1 and without gaps, and of a stream the number of its newest
// event. 0 stands for a stream that does not exist.
type Version int64
