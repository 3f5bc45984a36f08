//go:build race

package eventlog

// raceDetector reports whether the tests run with the race detector, which makes them slower by a multiple.
const raceDetector = true
