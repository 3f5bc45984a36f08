//go:build !race

package meshrun

const raceDetector = false
