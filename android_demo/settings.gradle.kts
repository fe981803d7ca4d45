// For Android Studio. The tests build the same sources by pom.xml, from Maven Central alone.
pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
}
dependencyResolutionManagement {
    repositories {
        google()
        mavenCentral()
    }
}
rootProject.name = "android-demo"
include(":core", ":engine-ort", ":engine-tflite", ":sync", ":app")
