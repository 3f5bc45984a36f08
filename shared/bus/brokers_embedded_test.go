//go:build !integration

package bus_test

import (
	"testing"

	"github.com/edumatrix/interlinked/shared/backend"
	"github.com/edumatrix/interlinked/shared/meshtest"
)

func brokers() map[string]func(testing.TB) backend.Kafka {
	return map[string]func(testing.TB) backend.Kafka{"embedded": meshtest.EmbeddedKafka}
}
