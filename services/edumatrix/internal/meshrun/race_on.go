//go:build race

package meshrun

const raceDetector = true
