module github.com/edumatrix/interlinked/services/gateway

go 1.26.0
