module github.com/edumatrix/interlinked/services/edumatrix

go 1.26.0
